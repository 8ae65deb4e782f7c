"""The whole stack over an app that answers with everything that its answer could depend on."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from tests.driver import Answer, App, User, call
from tidegate import RoutePolicy, Tidegate

__all__ = ["ANN", "BEA", "BOB", "Echo", "asked", "hits", "stack", "tide"]

ANN, BOB, BEA = User("acme", "ann"), User("acme", "bob"), User("bolt", "bea")


def tide(*policies: RoutePolicy, **options: Any) -> Tidegate:
    """Five layers, with a registry of their own."""
    return Tidegate(policies=policies, registry=CollectorRegistry(), **options)


def stack(app: App, *, share: Any = "public", ttl: float | None = 600, **options: Any) -> App:
    """The five layers over an app; all paths have one policy."""
    return tide(RoutePolicy(route="/{rest:path}", ttl=ttl, share=share, **options))(app)


class Echo:
    """Answers who asked, and what with. fields: of every answer, as they stand."""

    def __init__(self, *fields: tuple[bytes, bytes], status: int = 200, length: bool = True) -> None:
        self.fields = list(fields)
        self.status = status
        self.length = length
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        message = await receive()
        who = scope.get("user")
        said = {
            "who": [who.tenant, who.username, who.grants] if who is not None else None,
            "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "url": [scope["method"], scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")],
            "root": scope["root_path"],
            "sent": message.get("body", b"").decode("latin-1"),
        }
        body = json.dumps(said).encode()
        length = [(b"content-length", b"%d" % len(body))] if self.length else []
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": self.status, "headers": [*length, *self.fields]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def asked(app: App, *requests: dict[str, Any]) -> list[Answer]:
    """The answers to requests, one after the other. Keys are the arguments of `tests.driver.call`."""

    async def all_of_them() -> list[Answer]:
        return [await call(app, **dict(request)) for request in requests]

    return asyncio.run(all_of_them())


def said(answer: Answer) -> Any:
    """What the app answered."""
    return json.loads(answer.body)


def fields_of(answer: Answer, name: str) -> list[str]:
    """The lines of a request field that the answer was made from."""
    return [value for field, value in said(answer)["fields"] if field == name]


def hits(answers: Iterable[Answer]) -> list[bool]:
    """Which of them came from the cache."""
    return [answer.hit for answer in answers]
