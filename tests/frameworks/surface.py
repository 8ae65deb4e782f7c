"""What the five apps of this folder have in common: who may ask, what the handlers read and write, the policies.

| request | what it shows | policy |
|---|---|---|
| GET /me | JSON for one user, with what the lifespan left in the state | user, 60 s |
| GET /page | a page for everybody | public, 60 s, tag `page` |
| PUT /title | changes the page | invalidates `page` |
| GET /clients/{client_id} | JSON for one tenant | tenant, 60 s, tag `client:…` |
| PUT /clients/{client_id}/name | changes it | invalidates `client:…`, `clients` |
| GET /report | JSON with a background task behind it, where the framework has them | tenant, 60 s, tag `clients` |
| GET /old | a redirect, 301, to /page | public, 60 s |
| GET /cookies | two Set-Cookie lines | user, 60 s: never stored |
| GET /events | server-sent events, one for each `World.allow` | none |
| POST /upload, POST /stream | multipart; a body read in pieces | none |
| GET /refused, GET /crash | an exception with a handler; one without | user, 60 s: never stored |
| POST /allow | lets one event go | none |
| /ws | WebSocket echo | |
| GET /sub/page, GET /sub/me | the same in a sub-app, with other bodies | as above, where the layers stand round all |
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.driver import App, User
from tidegate import Identity, RoutePolicy, Tidegate

__all__ = [
    "COOKIES",
    "EVENTS",
    "FORM",
    "FORM_TYPE",
    "PEOPLE",
    "POLICIES",
    "REASON",
    "SUB_POLICIES",
    "Crash",
    "Framework",
    "How",
    "Refused",
    "World",
    "bearer",
    "identity_of",
    "user_of_token",
]

PEOPLE: Final = {
    "ann-token": User("acme", "ann"),
    "ben-token": User("acme", "ben"),
    "eve-token": User("globex", "eve"),
}
EVENTS: Final = 3
COOKIES: Final = ("a=1", "b=2")
REASON: Final = "no such client"
FORM: Final = (
    b'--tide\r\ncontent-disposition: form-data; name="field"\r\n\r\nvalue\r\n'
    b'--tide\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\ncontent-type: text/plain\r\n\r\n'
    b"contents of the file\r\n--tide--\r\n"
)
FORM_TYPE: Final = ("content-type", "multipart/form-data; boundary=tide")
"""The upload of a field and a file."""

POLICIES: Final = (
    RoutePolicy(route="/me", ttl=60),
    RoutePolicy(route="/page", ttl=60, share="public", tags=("page",)),
    RoutePolicy(route="/title", invalidates=("page",)),
    RoutePolicy(route="/clients/{client_id}", ttl=60, share="tenant", tags=("client:{client_id}",)),
    RoutePolicy(route="/clients/{client_id}/name", invalidates=("client:{client_id}", "clients")),
    RoutePolicy(route="/report", ttl=60, share="tenant", tags=("clients",)),
    RoutePolicy(route="/old", ttl=60, share="public"),
    RoutePolicy(route="/cookies", ttl=60),
    RoutePolicy(route="/refused", ttl=60),
    RoutePolicy(route="/crash", ttl=60),
    RoutePolicy(route="/sub/page", ttl=60, share="public", tags=("page",)),
    RoutePolicy(route="/sub/me", ttl=60),
)
SUB_POLICIES: Final = (
    RoutePolicy(route="/me", ttl=60),
    RoutePolicy(route="/page", ttl=60, share="public", tags=("page",)),
)
"""The same for layers that stand round the sub-app alone: routes are relative to the mount."""

How = Literal["around", "inside", "sub"]
"""Where the layers stand: round the whole app, as the framework's own middleware, or round the sub-app alone."""


class Refused(Exception):
    """Answered by the app's exception handler."""


class Crash(RuntimeError):
    """Answered by nobody."""


class World:
    """What one app's handlers read and write. Made on the event loop that the app runs on.

    runs: how often each handler ran. pieces: sizes of the pieces in which /stream read its body.
    done: what background tasks have finished; they wait for `release`.
    purge: how a write that does not pass the layers tells them of it; None: it passes them, or there are none.
    """

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.title = "tide"
        self._names = {("acme", "7"): "seven", ("globex", "7"): "sept"}
        self.pieces: list[int] = []
        self.purge: Callable[[str], Awaitable[object]] | None = None
        self.done: list[str] = []
        self.release = asyncio.Event()
        self._allowed = asyncio.Semaphore(0)

    def allow(self) -> None:
        """Let the next server-sent event go."""
        self._allowed.release()

    def me(self, user: User | None, state: str | None, *, sub: bool = False) -> dict[str, Any]:
        """The JSON of /me."""
        self.runs["sub/me" if sub else "me"] += 1
        who = {"tenant": user.tenant, "user": user.username} if user is not None else {}
        return {**who, "state": state, "sub": sub}

    def page(self, *, sub: bool = False) -> str:
        """The HTML of /page."""
        self.runs["sub/page" if sub else "page"] += 1
        return f"<h1>{'sub of ' if sub else ''}{self.title}</h1>"

    async def retitle(self, title: bytes) -> None:
        """PUT /title."""
        self.title = title.decode()
        if self.purge is not None:
            await self.purge("page")

    def client(self, client_id: str, user: User | None) -> dict[str, Any]:
        """The JSON of /clients/{client_id}.

        Raises:
            Refused: if there is no such client.
        """
        self.runs["client"] += 1
        tenant = user.tenant if user is not None else ""
        name = self._names.get((tenant, client_id))
        if name is None:
            raise Refused(REASON)
        return {"id": client_id, "name": name, "tenant": tenant}

    def rename(self, client_id: str, user: User | None, name: bytes) -> None:
        """PUT /clients/{client_id}/name."""
        self._names[user.tenant if user is not None else "", client_id] = name.decode()

    def report(self, user: User | None) -> dict[str, Any]:
        """The JSON of /report."""
        self.runs["report"] += 1
        return {"clients": [name for (tenant, _), name in self._names.items() if user and tenant == user.tenant]}

    async def after_report(self) -> None:
        """The background task behind /report."""
        await self.release.wait()
        self.done.append("report")

    async def read(self, stream: AsyncIterable[bytes]) -> dict[str, int]:
        """POST /stream, piece by piece."""
        self.pieces = []
        async for piece in stream:
            if piece:
                self.pieces.append(len(piece))
        return {"bytes": sum(self.pieces)}

    async def events(self) -> AsyncIterator[str]:
        """The data of the events, each once it is allowed."""
        self.runs["events"] += 1
        for number in range(EVENTS):
            await self._allowed.acquire()
            yield f"event {number}"


def user_of_token(authorization: str | None) -> User | None:
    """Who shows `Authorization: Bearer …`."""
    return PEOPLE.get((authorization or "").removeprefix("Bearer "))


def identity_of(scope: Any) -> Identity | None:
    """What an application hands over as `identify` where no middleware outside has authenticated."""
    sent = dict(scope["headers"]).get(b"authorization", b"").decode()
    user = user_of_token(sent)
    return Identity(user.tenant, user.username) if user is not None else None


def bearer(token: str) -> list[tuple[str, str]]:
    """The headers of somebody who shows a token."""
    return [("authorization", f"Bearer {token}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """One framework's app and what it can do.

    build: makes the app for a world, bare or with the layers in one of the places.
    identify: what a team hands to Tidegate in each place; None: the default, `scope["user"]`.
    headers: the request headers of somebody, by token.
    state: what the handlers find of what the lifespan made; None where the framework has no lifespan.
    background: whether it runs tasks after the response.
    pieces: whether a handler reads a body as it comes.
    cookies: whether answers that depend on the user say `Vary: Cookie`; then a tenant's copy serves one user of it.
    """

    name: str
    build: Callable[[World, Tidegate | None, How], App]
    identify: Callable[[How], Any]
    headers: Callable[[str], Sequence[tuple[str, str]]]
    state: str | None = "made"
    background: bool = True
    pieces: bool = True
    cookies: bool = False
