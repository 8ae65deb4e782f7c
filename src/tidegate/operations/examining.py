"""`tidegate cache explain --app`: a request through an application in this process, up to its cache.

The application is imported, its lifespan runs, and whatever it has mounted above Tidegate sees the request. The
outermost cache then says what it would do, and stores, purges and serves nothing. The app behind it is run for a GET or
HEAD only, and only if it is asked for.
"""

import asyncio
import importlib
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from tidegate.errors import ConfigError, Problem, TidegateError
from tidegate.middleware.core.explain import Explanation
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.layers.asgi import ASGIApp, Message, Receive, Scope, Send
from tidegate.middleware.layers.cache import CacheLayer
from tidegate.purging import Purging
from tidegate.runtime import Mounted

__all__ = ["Asked", "explain_in", "load_app"]

STARTS_WITHIN: Final = 60.0
"""Seconds for the application's start, and as many for the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to be explained. identity: as if it asked; None: whoever the app takes the request for.

    run: run the app behind the cache if what is stored does not answer (GET and HEAD only).
    """

    method: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    identity: Identity | None = None
    run: bool = True


def load_app(name: str) -> ASGIApp:
    """The application that `module:attribute` names, seen from the working directory as uvicorn does.

    Raises:
        ConfigError: if it is not there or cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise _bad_app(name, "names no application", "write package.module:app, as for uvicorn")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        # Its own faults are what there is to tell; some hold settings in their text, so only the kind is shown.
        told = f"cannot be imported: {type(error).__name__}"
        if isinstance(error, ImportError | AttributeError):
            told += f": {error}"
        raise _bad_app(name, told, "run it where the app starts, and see that it starts there") from error
    if isinstance(found, Purging):
        raise _bad_app(name, "is a Tidegate, not the application that it is mounted on", "name what tide(app) gave")
    if not callable(found):
        raise _bad_app(name, f"is a {type(found).__name__}, not an ASGI application", "name the application")
    return cast(ASGIApp, found)


def _bad_app(name: str, problem: str, fix: str) -> ConfigError:
    return ConfigError("cache explain", [Problem(path="--app", value=name, problem=problem, fix=fix)])


async def explain_in(app: ASGIApp, asked: Asked) -> Explanation:
    """What the outermost cache of the app says about a request.

    Raises:
        TidegateError: if no cache sees it, or the app does not start, or does not get to an end.
    """
    try:
        async with asyncio.timeout(STARTS_WITHIN * 2):
            async with _Lifespan(app) as lifespan:
                return await _ask(app, asked, lifespan.state)
    except TimeoutError:
        raise TidegateError(f"the app did not start and answer within {STARTS_WITHIN * 2:g} s") from None


async def _ask(app: ASGIApp, asked: Asked, state: dict[str, Any]) -> Explanation:
    examination = _Examination(asked)
    status: int | None = None

    async def hear(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    with _examined(examination):
        try:
            await app(_scope_of(asked, state), _no_body(), hear)
        except Exception as error:  # what stands above the cache failed; the cache may have spoken before
            if examination.told is None:
                raise TidegateError(f"before a cache saw the request, {type(error).__name__} was raised") from error
    if examination.told is None:
        raise TidegateError(f"no cache sees this request: {_unseen(status)}")
    return examination.told


def _unseen(status: int | None) -> str:
    """Why that may be, by what was answered."""
    if status is not None and status >= 300:
        fix = "if that is what stands above Tidegate (authentication, say), show who asks with -H"
        return f"{status} was answered before it came to one; {fix}"
    return "is Tidegate mounted, and for this path?"


class _Examination:
    """One request, and what the first cache that it came to said."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.begun = False
        self.told: Explanation | None = None

    async def ask(self, layer: CacheLayer, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the cache explain the request, and answer it with nothing."""
        self.begun = True
        run = self.asked.run and scope["method"] in ("GET", "HEAD")
        self.told = await layer.explain(scope, receive if run else None, identity=self.asked.identity)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class _Stack:
    """Stands in for the layers that Tidegate has mounted."""

    def __init__(self, app: ASGIApp, layer: CacheLayer, examination: _Examination) -> None:
        self.app = app
        self._layer = layer
        self._examination = examination

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._examination.begun:
            await self.app(scope, receive, send)
        else:
            await self._examination.ask(self._layer, scope, receive, send)


class _Alone(CacheLayer):
    """A cache that is mounted by itself, while it is examined."""

    examination: _Examination

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.examination.begun:
            await super().__call__(scope, receive, send)
        else:
            await self.examination.ask(self, scope, receive, send)


@contextmanager
def _examined(examination: _Examination) -> Generator[None]:
    """While it lasts, every cache of this process explains instead of acting. The request path has no branch for it."""
    mounted = [(one, one.app, layer) for one in tuple(Mounted.made) if (layer := _cache_in(one.app)) is not None]
    alone = [layer for layer in tuple(CacheLayer.made) if type(layer) is CacheLayer]
    for one, app, layer in mounted:
        one.app = _Stack(app, layer, examination)
    for layer in alone:
        layer.__class__ = _Alone
        cast(_Alone, layer).examination = examination
    try:
        yield
    finally:
        for one, app, _ in mounted:
            one.app = app
        for layer in alone:
            del cast(_Alone, layer).examination
            layer.__class__ = CacheLayer


def _cache_in(app: object) -> CacheLayer | None:
    """The cache among the layers of a stack."""
    while app is not None and not isinstance(app, CacheLayer):
        app = getattr(app, "app", None)
    return app


def _scope_of(asked: Asked, state: dict[str, Any]) -> Scope:
    """The request as a server would give it."""
    parts = urlsplit(asked.url)
    scheme, raw_path = parts.scheme or "http", (parts.path or "/").encode()
    headers = list(asked.headers)
    if not any(name == b"host" for name, _ in headers):
        headers.insert(0, (b"host", (parts.netloc.rpartition("@")[2] or "localhost").encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": scheme,
        "path": unquote(parts.path or "/"),
        "raw_path": raw_path,
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": (parts.hostname or "localhost", parts.port or (443 if scheme == "https" else 80)),
        "extensions": {},
        "state": dict(state),
    }


def _no_body() -> Receive:
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # the client stays
        given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


class _Lifespan:
    """The application's start and end; one that knows no lifespan has neither."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._told: asyncio.Queue[Message] = asyncio.Queue()

    async def __aenter__(self) -> "_Lifespan":
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._told.put_nowait({"type": "lifespan.startup"})

        async def send(message: Message) -> None:
            self._said.put_nowait(message)

        self._task = asyncio.ensure_future(self._app(scope, self._told.get, send))
        said = await self._next()
        if said is not None and said["type"] == "lifespan.startup.failed":
            raise TidegateError(f"the app does not start: {said.get('message', '') or 'it does not say why'}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._told.put_nowait({"type": "lifespan.shutdown"})
        await self._next()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _next(self) -> Message | None:
        """What the app says next; None if it has ended. An exception ends it: it knows no lifespan (ASGI)."""
        hearing = asyncio.ensure_future(self._said.get())
        await asyncio.wait([hearing, self._task], return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            return hearing.result()
        hearing.cancel()
        self._task.exception()  # heard of
        return None
