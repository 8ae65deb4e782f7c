"""However a plain request ends on the straight way through all five layers, it ends as on the general one.

Two stacks answer the same scripts: what the app says in which order, whether it waits between, what it puts into the
scope, and at which message the server's `send` fails with what. Both have sent the same, raise the same, keep, count
and explain the same, and their circuits are open or closed alike.
"""

import asyncio
from itertools import product
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.driver import User, scope_of
from tests.property.test_fused import FLAGS, Decided, metrics_of
from tests.property.test_straight import Stack

COHORTS: Final = tuple((flag, "10", "canary") for flag in FLAGS)
BODY: Final = b"the whole body"
WHOLE: Final = ("start", "body")
SCRIPTS: Final = (
    WHOLE,
    ("session", *WHOLE),
    ("start", "session", "body"),
    ("start", "no session", "body"),
    ("start 500", "body"),
    ("start 503", "part", "body"),
    ("start 404", "body"),
    ("start told of trailers", "body", "trailers"),
    ("start", "part", "body"),
    ("start", "trailers", "body"),
    ("start", "start", "body"),
    ("start",),
    ("start", "raise"),
    ("body",),
    ("part", "start", "body"),
    ("read", *WHOLE),
    ("start", "read", "body"),
    (*WHOLE, "read"),
    (*WHOLE, "body"),
    (*WHOLE, "part", "body"),
    (*WHOLE, "start", "body"),
    (*WHOLE, "trailers"),
    (*WHOLE, "invented"),
    (*WHOLE, "raise"),
    (*WHOLE, "cancel"),
    (*WHOLE, "tag"),
    (*WHOLE, "session", "body"),
    ("start", "cancel"),
    ("raise",),
    ("cancel",),
    (),
)
ERRORS: Final = {
    "gone": ConnectionResetError("gone"),
    "other": ValueError("the server's own"),
    "cancelled": asyncio.CancelledError(),
}


class Scripted(Stack):
    """All five layers on an app that follows the request's script."""

    def __init__(self, *, straight: bool) -> None:
        super().__init__(straight=straight, alone=False)
        self.notes: list[object] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        state = scope["state"]
        for number, step in enumerate(state["script"]):
            if number == state["waits before"]:
                await asyncio.sleep(0)
            await self.act(step, scope, receive, send)
        if len(state["script"]) == state["waits before"]:
            await asyncio.sleep(0)

    async def act(self, step: str, scope: Any, receive: Any, send: Any) -> None:
        if step == "raise":
            raise LookupError("the app's own")
        if step == "cancel":
            raise asyncio.CancelledError
        if step == "read":
            self.notes.append(await receive())
        elif step == "tag":
            scope["tidegate"].tag("late")
        elif step in ("session", "no session"):
            scope["session"] = SimpleNamespace(modified=False) if step == "session" else None
        else:
            try:
                await send(message_of(step, scope))
            except Exception as error:
                self.notes.append(repr(error))
                if not scope["state"]["goes on"]:
                    raise

    async def ask(self, path: str, query: str, **state: Any) -> list[object]:
        """What was sent for one request, what it raised, what its context says then, what the app saw, what is kept."""
        decided = Decided(frozenset(FLAGS), COHORTS)
        scope = scope_of(path, user=User(state["tenant"], "ann"), query=query, state={"decided": decided, **state})
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append({**message, "headers": list(message.get("headers", ()))})
            if len(sent) - 1 == state["fails at"]:
                raise state["error"]

        raised = ""
        try:
            await asyncio.create_task(self.go(scope, receive, send))
        except (ValueError, LookupError, OSError, asyncio.CancelledError) as error:
            raised = repr(error)
        context = scope["tidegate"]
        told = (context.own_etag, context.storable, context.outcome, context.explainer, context.missed)
        notes, self.notes = self.notes, []
        kept, self.memory.kept = self.memory.kept, []
        return [sent, raised, told, notes, kept]

    async def go(self, scope: Any, receive: Any, send: Any) -> None:
        await self.stack(scope, receive, send)


def message_of(step: str, scope: Any) -> dict[str, Any]:
    if step.startswith("start"):
        headers = [(b"content-length", b"%d" % len(BODY)), (b"x-of", b"the app")]
        if scope["path"] != "/user":
            headers.append((b"cache-control", b"no-store" if scope["path"] == "/never" else b"max-age=60"))
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": headers}
        if "trailers" in step:
            start["trailers"] = True
        elif step != "start":
            start["status"] = int(step.partition(" ")[2])
        return start
    if step in ("body", "part", "whole", "last"):
        body, more = BODY if step in ("body", "whole") else b"", step in ("part", "whole")
        return {"type": "http.response.body", "body": body, "more_body": more}
    if step == "trailers":
        return {"type": "http.response.trailers", "headers": [(b"x-trailer", b"1")]}
    return {"type": "test.invented"}


@pytest.mark.parametrize("path", ["/user", "/never"])
def test_a_request_ends_on_the_straight_way_as_it_does_on_the_general_one(path: str) -> None:
    ends: list[tuple[str, bool]] = []

    async def compare(script: tuple[str, ...]) -> None:
        straight, general = Scripted(straight=True), Scripted(straight=False)
        ways = [(-1, "gone", False), *product((0, 1), ERRORS, (False,)), (0, "other", True), (1, "gone", True)]
        for tenant, (waits, (fails, error, goes_on)) in enumerate(product((-1, *range(min(3, len(script) + 1))), ways)):
            if goes_on and fails == 1 and script.count("body") > 1:
                continue  # a whole body after one that could not be sent: the general way alone still keeps that
            # A tenant has circuits of its own: each finds them closed, and where it does not wait may open them.
            of: dict[str, Any] = {
                "tenant": f"tenant{tenant}",
                "waits before": waits,
                "fails at": fails,
                "error": ERRORS[error],
                "goes on": goes_on,
            }
            for number in range(5 if waits < 0 and fails <= 0 and not goes_on else 1):
                seen, wanted = [
                    await each.ask(path, f"n={number}", script=script, **of) for each in (straight, general)
                ]
                assert seen == wanted, (script, of, number)
                ends.append((wanted[1], goes_on))
            seen, wanted = [
                await each.ask(path, "", script=WHOLE, **of | {"fails at": -1}) for each in (straight, general)
            ]
            assert seen == wanted, (script, of)
        assert straight.cohorts.totals() == general.cohorts.totals()
        assert metrics_of(straight) == metrics_of(general), script

    async def all_of_them() -> None:
        for script in SCRIPTS:
            await compare(script)

    asyncio.run(all_of_them())
    assert sum(bool(raised) for raised, _ in ends) > 400, len(ends)
    assert sum(goes_on and not raised for raised, goes_on in ends) > 100, len(ends)


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(
    "script", [("whole", "last"), ("whole", "invented", "last"), ("body", "invented"), ("part", "body")]
)
def test_what_tasks_of_the_app_send_at_once_keeps_its_order(straight: bool, turns: int, script: Any) -> None:
    """While the server takes its time with the response's start; the last of four requests finds its plan known."""
    wanted = [message_of(step, {"path": "/user"}) for step in ("start", *script)]

    class AtOnce(Scripted):
        async def app(self, scope: Any, receive: Any, send: Any) -> None:
            await send(message_of("start", scope))
            if scope["query_string"] != b"n=3":
                await send(message_of("body", scope))
                return

            async def say(message: Any) -> None:
                await send(message)

            rest = [asyncio.create_task(say(each)) for each in wanted[2:]]
            await send(wanted[1])
            await asyncio.gather(*rest)

    async def body() -> None:
        stack, sent = AtOnce(straight=straight), list[Any]()
        for number in range(4):
            decided = {"decided": Decided(frozenset(FLAGS), COHORTS)}
            scope = scope_of("/user", user=User("acme", "ann"), query=f"n={number}", state=decided)
            sent.clear()

            async def send(message: Any, turns: int = turns if number == 3 else 0) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                sent.append((message["type"], message.get("body")))

            async with asyncio.timeout(20):
                await stack.stack(scope, None, send)
        assert sent == [(message["type"], message.get("body")) for message in wanted]
        if straight:
            assert stack.way is not None
            assert stack.way.taken == 3

    asyncio.run(body())
