"""Drives an ASGI app in process, message by message, so that a test sees exactly what a server would."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Answer:
    """What an app sent for one request."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self._start["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self._start.get("headers", ()))

    @property
    def _start(self) -> Message:
        starts = [message for message in self.messages if message["type"] == "http.response.start"]
        assert len(starts) == 1, f"{len(starts)} starts in {[m['type'] for m in self.messages]}"
        return starts[0]

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def complete(self) -> bool:
        bodies = [m for m in self.messages if m["type"] == "http.response.body"]
        return bool(bodies) and not bodies[-1].get("more_body", False)

    def header(self, name: str) -> str | None:
        """The field's lines joined, or None."""
        lines = [value.decode("latin-1") for key, value in self.headers if key == name.lower().encode()]
        return ", ".join(lines) if lines else None

    @property
    def hit(self) -> bool:
        return "; hit" in (self.header("cache-status") or "")


def scope_of(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    query: str = "",
    user: object = None,
    **more: Any,
) -> dict[str, Any]:
    """An HTTP scope as uvicorn would make it."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"example.test"), *((k.lower().encode(), v.encode("latin-1")) for k, v in headers)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "extensions": {},
        "state": {},
    }
    if user is not None:
        scope["user"] = user
    return scope | more


async def call(
    app: App, path: str = "/", *, body: bytes = b"", scope: dict[str, Any] | None = None, **of: Any
) -> Answer:
    """One request through the app; the client stays until the app call has returned."""
    answer = Answer()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        answer.messages.append(dict(message))

    await app(scope if scope is not None else scope_of(path, **of), receive, send)
    return answer


class User:
    """An authenticated user, as Starlette's AuthenticationMiddleware would leave one."""

    is_authenticated = True

    def __init__(self, tenant: str, username: str, grants: str = "") -> None:
        self.tenant = tenant
        self.username = username
        self.grants = grants


class Origin:
    """A small app that counts its calls and answers what it was told to."""

    def __init__(
        self,
        body: bytes | Callable[[dict[str, Any]], bytes] = b"hello",
        *,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.calls = 0
        self.body = body
        self.status = status
        self.headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        self.seen.append(scope)
        body = self.body(scope) if callable(self.body) else self.body
        length = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": self.status, "headers": [*length, *self.headers]})
        await send({"type": "http.response.body", "body": body})
