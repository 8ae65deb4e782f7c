"""The app in Django, with Channels for WebSockets.

Django's authentication middleware lives inside of the app, behind any ASGI layer, and reads the database. Channels'
`AuthMiddlewareStack` does the same in front: it reads the session cookie, looks session and user up, and leaves
`scope["user"]`. Django has no lifespan. Round the whole app the layers start with the first request; as Django's own
way (`inside`) the router gets a lifespan that is theirs alone.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware

from tests.driver import App, User
from tests.frameworks.surface import COOKIES, PEOPLE, Crash, Framework, How, Refused, World
from tidegate import Tidegate
from tidegate.middleware.layers.identifying import starlette_user

__all__ = ["DJANGO", "prepare", "refusals", "urlpatterns"]

_WORLD: ContextVar[World] = ContextVar("world")


@cache
def prepare() -> dict[str, str]:
    """Make the tables, the people and a session for each, once for the process: the session keys by token.

    In a thread: Django refuses to do it on a running event loop.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.frameworks.django_settings")
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_prepare).result()


def _prepare() -> dict[str, str]:
    import django

    django.setup()
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore
    from django.db import connection

    from tests.frameworks.django_people.models import Person

    call_command("migrate", run_syncdb=True, verbosity=0)
    keys = {}
    for token, who in PEOPLE.items():
        person = Person.objects.create(username=who.username, tenant=who.tenant)
        session = SessionStore()
        session[SESSION_KEY] = str(person.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = person.get_session_auth_hash()
        session.create()
        keys[token] = session.session_key or ""
    connection.close()
    return keys


def headers(token: str) -> Sequence[tuple[str, str]]:
    """The cookie of somebody who has signed in."""
    return [("cookie", f"sessionid={prepare()[token]}")]


async def _user(request: HttpRequest) -> User | None:
    user: Any = await request.auser()  # type: ignore[attr-defined]
    return User(user.tenant, user.username) if user.is_authenticated else None


async def me(request: HttpRequest) -> HttpResponse:
    """GET /me."""
    return JsonResponse(_WORLD.get().me(await _user(request), None))


async def sub_me(request: HttpRequest) -> HttpResponse:
    """GET /sub/me."""
    return JsonResponse(_WORLD.get().me(await _user(request), None, sub=True))


async def page(_request: HttpRequest) -> HttpResponse:
    """GET /page."""
    return HttpResponse(_WORLD.get().page())


async def sub_page(_request: HttpRequest) -> HttpResponse:
    """GET /sub/page."""
    return HttpResponse(_WORLD.get().page(sub=True))


async def title(request: HttpRequest) -> HttpResponse:
    """PUT /title."""
    await _WORLD.get().retitle(request.body)
    return HttpResponse(status=204)


async def client(request: HttpRequest, client_id: str) -> HttpResponse:
    """GET /clients/{client_id}."""
    return JsonResponse(_WORLD.get().client(client_id, await _user(request)))


async def rename(request: HttpRequest, client_id: str) -> HttpResponse:
    """PUT /clients/{client_id}/name."""
    _WORLD.get().rename(client_id, await _user(request), request.body)
    return HttpResponse(status=204)


async def report(request: HttpRequest) -> HttpResponse:
    """GET /report; Django of this version runs nothing after a response."""
    return JsonResponse(_WORLD.get().report(await _user(request)))


async def old(_request: HttpRequest) -> HttpResponse:
    """GET /old."""
    return HttpResponsePermanentRedirect("/page")


async def cookies(_request: HttpRequest) -> HttpResponse:
    """GET /cookies."""
    response = HttpResponse("cookies")
    for cookie in COOKIES:
        response.set_cookie(*cookie.split("="))
    return response


async def events(_request: HttpRequest) -> StreamingHttpResponse:
    """GET /events."""
    stream = (f"data: {event}\n\n" async for event in _WORLD.get().events())
    return StreamingHttpResponse(stream, content_type="text/event-stream", headers={"cache-control": "no-store"})


async def upload(request: HttpRequest) -> HttpResponse:
    """POST /upload."""
    file = request.FILES["file"]
    told = {"field": request.POST["field"], "name": file.name, "size": len(file.read())}
    return JsonResponse(told, status=201)


async def stream(request: HttpRequest) -> HttpResponse:
    """POST /stream: Django has read the body to its end before a view begins."""
    return JsonResponse({"bytes": len(request.body)})


async def refused(_request: HttpRequest) -> HttpResponse:
    """GET /refused."""
    raise Refused("no")


async def crash(_request: HttpRequest) -> HttpResponse:
    """GET /crash."""
    raise Crash("unhandled")


async def allow(_request: HttpRequest) -> HttpResponse:
    """POST /allow."""
    _WORLD.get().allow()
    return HttpResponse(status=204)


@async_only_middleware
def refusals(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> Any:
    """Django's way to handle an exception of the application: a middleware with `process_exception`."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        return await get_response(request)

    async def process_exception(_request: HttpRequest, error: Exception) -> HttpResponse | None:
        return JsonResponse({"refused": str(error)}, status=409) if isinstance(error, Refused) else None

    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware


urlpatterns = [
    path("me", me),
    path("page", page),
    path("title", title),
    path("clients/<str:client_id>", client),
    path("clients/<str:client_id>/name", rename),
    path("report", report),
    path("old", old),
    path("cookies", cookies),
    path("events", events),
    path("upload", upload),
    path("stream", stream),
    path("refused", refused),
    path("crash", crash),
    path("allow", allow),
    path("sub/me", sub_me),
    path("sub/page", sub_page),
]


class Echo(AsyncWebsocketConsumer):
    """The WebSocket, in Channels."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Answer a text."""
        await self.send(text_data=f"echo {text_data}")


def build(world: World, tide: Tidegate | None, how: How) -> App:
    """The app. A sub-app is what Django calls an include, and no app of its own: `sub` is as `inside` there."""
    prepare()
    django = get_asgi_application()

    async def http(scope: Any, receive: Any, send: Any) -> None:
        _WORLD.set(world)
        await django(scope, receive, send)

    sockets = URLRouter([path("ws", Echo.as_asgi())])
    if tide is None:
        return ProtocolTypeRouter({"http": http, "websocket": sockets})
    if how == "around":
        return AuthMiddlewareStack(tide(ProtocolTypeRouter({"http": http, "websocket": sockets})))
    return ProtocolTypeRouter(
        {"http": AuthMiddlewareStack(tide(http)), "websocket": sockets, "lifespan": tide.lifespan}
    )


DJANGO = Framework(
    name="django",
    build=build,
    identify=lambda _how: starlette_user,
    headers=headers,
    state=None,
    background=False,
    pieces=False,
    cookies=True,
)
