"""Requests that come together go the straight way through all five layers as they go the general one.

Two stacks live through the same generated lives, in one of which plain requests may take the straight way: apps that
wait, before they answer and in the middle of it, clients that are slow, that break off, that are cancelled, purges,
failures. After each step both have sent the same, run the app as often, hold the same flights, and count the same.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.driver import scope_of
from tests.middleware.layers.coalescing import Client, settle
from tests.property.test_fused import FLAGS, USERS, Decided, metrics_of
from tests.property.test_straight import Stack
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.policy import Policies
from tidegate.middleware.layers.asgi import RequestContext
from tidegate.middleware.layers.joining import PlainKeys, key_of
from tidegate.middleware.layers.naming import Names, host_of

PAUSES = ("first", "before the start", "before the body", "at the end")
COHORTS = tuple((flag, "10", "canary") for flag in FLAGS)


@dataclass(frozen=True)
class Do:
    """One step: a request that comes, or something that happens to the number-th of them or of the waiting runs."""

    what: Literal["ask", "write", "go on", "leave", "break", "take", "purge", "join and leave"]
    number: int = 0
    path: str = "/user"
    user: int = 0
    pauses: tuple[str, ...] = ()
    fails: str = ""
    slow: bool = False
    reads: str = ""
    odd: str = ""


class Together(Stack):
    """All five layers on an app whose runs wait where the requests say."""

    def __init__(self, *, straight: bool) -> None:
        super().__init__(straight=straight, alone=False)
        self.coalesce.max_body = 100
        self.clients: list[Client] = []
        self.waiting: list[tuple[int, int, asyncio.Event]] = []
        self.runs = self.cancelled = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        asked: Do = scope["state"]["asked"]
        self.runs += 1
        body = b"for %d" % scope["state"]["number"] + b"." * (100 if asked.odd == "a large body" else 0)
        headers = [(b"content-length", b"%d" % len(body))]
        if asked.path != "/user":
            headers.append((b"cache-control", b"no-store" if asked.path == "/never" else b"max-age=60"))
        try:
            if asked.reads == "first":
                await receive()
            await self.pause(scope, "first")
            if asked.reads == "then":
                await receive()
                await self.pause(scope, "before the start")
            if asked.fails == "first":
                raise ValueError
            more = {"odd": asked.odd}
            start = {"type": "http.response.start", "status": 200, "headers": headers}
            await send(start | (more if asked.odd == "a start" else {}))
            if asked.odd == "more headers":
                headers.append((b"x-late", b"1"))
            await self.pause(scope, "before the body")
            sending = send({"type": "http.response.body", "body": body} | (more if asked.odd == "a body" else {}))
            await (asyncio.ensure_future(sending) if asked.odd == "in a task" else sending)
            await self.pause(scope, "at the end")
            if asked.fails == "at the end":
                raise ValueError
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def pause(self, scope: Any, where: str) -> None:
        state = scope["state"]
        if where in state["asked"].pauses:
            event = asyncio.Event()
            # In the order of the requests: followers of a run that fails go on in any.
            self.waiting.append((state["number"], PAUSES.index(where), event))
            self.waiting.sort(key=lambda each: each[:2])
            await event.wait()

    async def do(self, step: Do) -> None:
        clients = self.clients
        if step.what in ("ask", "write", "join and leave"):
            state = {"decided": Decided(frozenset(FLAGS), COHORTS), "asked": step, "number": len(clients)}
            method = "POST" if step.what == "write" else "GET"
            client = Client(self.stack, scope=scope_of(step.path, method=method, user=USERS[step.user], state=state))
            client.slow = asyncio.Event() if step.slow else None
            clients.append(client)
            if step.what == "join and leave":
                await asyncio.sleep(0)  # it has joined, and the leader has not heard of that yet
                clients[step.number].task.cancel()
        elif step.what == "purge":
            await self.store.purge({"public": ("",)})
        elif step.what == "go on":
            if self.waiting:
                self.waiting.pop(step.number % len(self.waiting))[2].set()
        elif clients:
            client = clients[step.number % len(clients)]
            if step.what == "leave":
                client.task.cancel()
            elif step.what == "break":
                client.broken = True
                client.left.set()
            if client.slow is not None and step.what != "leave":
                client.slow.set()
        await settle(40)

    async def end(self) -> list[object]:
        while self.waiting or any(client.slow is not None and not client.slow.is_set() for client in self.clients):
            await self.do(Do("go on"))
            for number in range(len(self.clients)):
                await self.do(Do("take", number))
        async with asyncio.timeout(20):
            return [repr(each) for each in await asyncio.gather(*self.tasks, return_exceptions=True)]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [client.task for client in self.clients]

    def seen_so_far(self) -> dict[str, object]:
        return {
            "messages": [client.answer.messages for client in self.clients],
            "over": [task.done() for task in self.tasks],
            "runs": (self.runs, self.cancelled),
            "flights": sorted(map(repr, self.coalesce.flights)),
            "kept": self.memory.kept,
        }


WHERE: SearchStrategy[tuple[str, ...]] = st.sampled_from([(), ("first",), *((each,) for each in PAUSES), PAUSES])
ASKS = st.builds(
    Do,
    what=st.just("ask"),
    path=st.sampled_from(["/user", "/user", "/plain", "/never"]),
    user=st.sampled_from([0, 0, 0, 1]),
    pauses=WHERE,
    fails=st.sampled_from(["", "", "", "", "first", "at the end"]),
    slow=st.integers(0, 4).map(lambda n: n == 4),
    reads=st.sampled_from(["", "", "", "", "", "", "", "", "first", "then"]),
    odd=st.sampled_from(["", "", "", "", "", "", "", "a start", "a body", "a large body", "in a task", "more headers"]),
)
HAPPENS = st.builds(
    Do,
    what=st.sampled_from(["go on", "go on", "go on", "leave", "break", "take", "purge", "write"]),
    number=st.integers(0, 5),
)


ASK = Do("ask", pauses=("first",))
FORSAKEN = [
    # The leader leaves its follower; then the run fails, or does not.
    [replace(ASK, fails=fails), ASK, Do("leave", 0), Do("go on"), Do("go on")]
    for fails in ("", "first", "at the end")
]


GONE = [
    # The clients break off while the start is being sent, as often as would open the circuit; others join meanwhile.
    [
        *[step for number in range(6) for step in (Do("ask", path=path, slow=True), Do("break", number))],
        Do("ask", path=path),
    ]
    for path in ("/user", "/never")
]
NEVER = replace(ASK, path="/never")
REFUSED = [
    # What was answered after a wait is not for sharing, and the next one like it knows; or it is too much to share.
    [NEVER, Do("go on"), Do("ask", path="/never")],
    *(
        [replace(ASK, path=path, odd=odd), Do("go on"), Do("purge"), *[replace(ASK, path=path)] * 2]
        for odd in ("a start", "a body", "a large body")
        for path in ("/user", "/plain")
    ),
]
WRITTEN = [
    # Its tenant wrote something while the run waited: nobody joins any more, whatever way the run goes on.
    [Do("ask", path=path, reads=reads, pauses=PAUSES[:2]), Do("write", path="/never"), *then, Do("ask", path=path)]
    for path in ("/user", "/plain")
    for reads in ("", "then")
    for then in ([], [Do("go on")])
]
AT_ONCE = [
    # One joins, and in the same turn of the event loop the leader leaves.
    [replace(ASK, path=path), Do("join and leave", path=path), Do("go on"), Do("go on")]
    for path in ("/user", "/plain")
]
IN_A_TASK = [
    # The app waits for the first time, or others join, between its call of `send` and when that begins.
    [Do("ask", path=path, odd="in a task", pauses=pauses), *then, Do("ask", path=path)]
    for path in ("/user", "/plain")
    for pauses in ((), ("first",))
    for then in ([], [Do("go on")], [Do("ask", path=path), Do("go on")])
]
LATER = [
    # The app goes on with the list that it gave.
    [Do("ask", path=path, odd="more headers", pauses=pauses), *[Do("go on")] * 2, Do("ask", path=path)]
    for path in ("/user", "/plain")
    for pauses in ((), PAUSES)
]
MEANWHILE = [[Do("ask", slow=True), Do("ask"), Do("take", 0), Do("ask")]]


def test_requests_that_come_together_take_the_straight_way_as_they_take_the_general_one() -> None:
    through: list[int] = []
    flights: list[int] = []

    async def live(steps: list[Do]) -> None:
        straight, general = Together(straight=True), Together(straight=False)
        for step in steps:
            await straight.do(step)
            await general.do(step)
            assert straight.seen_so_far() == general.seen_so_far(), step
            flights.append(len(general.coalesce.flights))
        assert await straight.end() == await general.end()
        assert straight.seen_so_far() == general.seen_so_far()
        assert straight.cohorts.totals() == general.cohorts.totals()
        assert metrics_of(straight) == metrics_of(general)
        assert straight.way is not None
        through.append(straight.way.taken)

    @settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.one_of(ASKS, ASKS, HAPPENS), min_size=4, max_size=14))
    def compare(steps: list[Do]) -> None:
        asyncio.run(live(steps))

    for steps in (*FORSAKEN, *GONE, *MEANWHILE, *IN_A_TASK, *LATER, *REFUSED, *WRITTEN, *AT_ONCE):
        asyncio.run(live(steps))
    compare()
    assert sum(through) > 200, sum(through)
    assert sum(flights) > 500, sum(flights)


def test_a_note_of_another_request_or_of_another_cache_leads_nobody_through() -> None:
    async def body() -> None:
        one, other = Together(straight=True), Together(straight=True)
        assert one.way is not None
        assert other.way is not None
        state = {"decided": Decided(frozenset(FLAGS), COHORTS), "asked": Do("ask"), "number": 0}
        first, second = (scope_of(path, user=USERS[0], state=state) for path in ("/user", "/plain"))
        context = one.resolver.of(first)
        assert one.cache.hits is not None
        assert one.cache.hits.find(first, context) is None
        assert one.way.take(second, context, never, never, 0.0) is None
        assert other.way.take(first, context, never, never, 0.0) is None
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])

        passage = one.way.take(first, context, never, send, 0.0)
        assert passage is not None
        await passage
        assert sent == ["http.response.start", "http.response.body"]
        assert (one.way.taken, other.way.taken) == (1, 0)

    asyncio.run(body())


async def never(*_: Any) -> Any:
    raise AssertionError


HEADS = st.lists(
    st.sampled_from(
        [(b"host", b"a"), (b"accept", b"b"), (b"accept", b"c"), (b"traceparent", b"1"), (b"x", b"y" * 2000)]
    ),
    max_size=4,
)
CONTEXTS = st.builds(
    lambda user, opened, narrowed: (user, opened, narrowed),
    st.sampled_from([None, ("acme", "ann"), ("acme", "ben"), ("acme", None)]),
    st.sampled_from([None, frozenset(FLAGS), frozenset({"etag"})]),
    st.sampled_from([None, None, b"k1", b"k2"]),
)
ASKED = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["/a", "/b"]),
        "query_string": st.sampled_from([b"", b"q"]),
        "raw_path": st.sampled_from([None, b"/a", b"/%61"]),
        "root_path": st.sampled_from(["", "/r"]),
        "scheme": st.sampled_from(["http", "https"]),
        "client": st.sampled_from([None, ("1.1.1.1", 1), ("1.1.1.1", 2), ("2.2.2.2", 1)]),
        "headers": HEADS,
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ASKED, CONTEXTS), min_size=2, max_size=30), st.sampled_from([1, 3, 1024]))
def test_the_remembered_key_of_a_plain_request_is_the_one_that_would_be_made(asked: list[Any], remember: int) -> None:
    keys, names = PlainKeys(remember), Names(namespace=b"v1", naming_key=b"secret")
    for fields, (user, opened, narrowed) in [*asked, *asked, *asked]:
        identity = Identity(*user) if user is not None else None
        decision = Decided(opened, COHORTS) if opened is not None else None
        context = RequestContext(identity, Policies(()).match(fields["path"]), decision)
        context.coalesce_key = narrowed
        scope = {"method": "GET", **fields}
        # The share says less than the identity does, which a key is made of.
        named = names.of(scope, host_of(scope), context.match, "tenant" if identity is not None else "public", identity)
        key = key_of(scope, context)
        known, hashed = keys.of(scope, context, named)
        assert known == key
        assert hashed in (hash(key), None if narrowed is not None else hash(key))
