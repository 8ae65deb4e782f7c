"""The app in Litestar. Its middleware stands behind its router, a stack for each handler, and so does authentication.

Nothing of the lifespan reaches a middleware there: `on_startup` and `on_shutdown` hand it to Tidegate.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from litestar import Litestar, MediaType, Request, Response, WebSocket, asgi, get, post, put, websocket
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie, UploadFile
from litestar.enums import RequestEncodingType
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from litestar.params import Body, FromPath
from litestar.response import Redirect, ServerSentEvent

from tests.driver import App, User
from tests.frameworks.surface import COOKIES, Crash, Framework, How, Refused, World, bearer, identity_of, user_of_token
from tidegate import Tidegate, TidegateMiddleware
from tidegate.middleware.layers.identifying import starlette_user

__all__ = ["LITESTAR"]


class Tokens(AbstractAuthenticationMiddleware):
    """Knows people by their token."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """User and token; the user is None where nobody is known."""
        sent = connection.headers.get("authorization")
        return AuthenticationResult(user=user_of_token(sent), auth=sent)


def user_of(request: Request[Any, Any, Any]) -> User | None:
    """Whom the middleware found."""
    return request.user


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """What the handlers find in their state."""
    app.state.pool = "made"
    yield


def sub_app(world: World) -> Litestar:
    """What is mounted at /sub."""

    @get("/me", middleware=[Tokens])
    async def me(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return world.me(user_of(request), None, sub=True)

    @get("/page", media_type=MediaType.HTML)
    async def page() -> str:
        return world.page(sub=True)

    return Litestar([me, page], openapi_config=None)


def readings(world: World) -> list[Any]:
    """The handlers that read."""

    @get("/me")
    async def me(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return world.me(user_of(request), request.app.state.get("pool"))

    @get("/page", media_type=MediaType.HTML)
    async def page() -> str:
        return world.page()

    @get("/clients/{client_id:str}")
    async def client(client_id: FromPath[str], request: Request[Any, Any, Any]) -> dict[str, Any]:
        return world.client(client_id, user_of(request))

    @get("/report")
    async def report(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
        return Response(world.report(user_of(request)), background=BackgroundTask(world.after_report))

    @get("/old", status_code=301)
    async def old() -> Redirect:
        return Redirect("/page", status_code=301)

    @get("/cookies", response_cookies=[Cookie(*cookie.split("=")) for cookie in COOKIES])
    async def cookies() -> str:
        return "cookies"

    @get("/events")
    async def events() -> ServerSentEvent:
        return ServerSentEvent(world.events(), headers={"cache-control": "no-store"})

    @get("/refused")
    async def refused() -> None:
        raise Refused("no")

    @get("/crash")
    async def crash() -> None:
        raise Crash("unhandled")

    return [me, page, client, report, old, cookies, events, refused, crash]


def writings(world: World) -> list[Any]:
    """The handlers that write, and the WebSocket."""

    @put("/title", status_code=204)
    async def title(request: Request[Any, Any, Any]) -> None:
        await world.retitle(await request.body())

    @put("/clients/{client_id:str}/name", status_code=204)
    async def rename(client_id: FromPath[str], request: Request[Any, Any, Any]) -> None:
        world.rename(client_id, user_of(request), await request.body())

    @post("/upload")
    async def upload(
        data: Annotated[dict[str, Any], Body(media_type=RequestEncodingType.MULTI_PART)],
    ) -> dict[str, Any]:
        file: UploadFile = data["file"]
        return {"field": data["field"], "name": file.filename, "size": len(await file.read())}

    @post("/stream", status_code=200)
    async def stream(request: Request[Any, Any, Any]) -> dict[str, int]:
        return await world.read(request.stream())

    @post("/allow", status_code=204)
    async def allow() -> None:
        world.allow()

    @websocket("/ws")
    async def echo(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async for text in socket.iter_data():
            await socket.send_text(f"echo {text}")

    return [title, rename, upload, stream, allow, echo]


def refusal(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    """The exception handler."""
    return Response({"refused": str(error)}, status_code=409)


def build(world: World, tide: Tidegate | None, how: How) -> App:
    """The app; of its middleware the first is the outermost."""
    sub: Any = sub_app(world)
    if tide is not None and how == "sub":
        sub = tide(sub)

    @asgi("/sub", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await sub(scope, receive, send)

    inside = tide is not None and how == "inside"
    app = Litestar(
        [*readings(world), *writings(world), mounted],
        middleware=[Tokens, *([DefineMiddleware(TidegateMiddleware, tide=tide)] if inside else [])],
        on_startup=[tide.start] if tide is not None and inside else [],
        on_shutdown=[tide.aclose] if tide is not None and inside else [],
        lifespan=[lifespan],
        exception_handlers={Refused: refusal},
        openapi_config=None,
    )
    return tide(app) if tide is not None and how == "around" else app


LITESTAR = Framework(
    name="litestar",
    build=build,
    identify=lambda how: starlette_user if how == "inside" else identity_of,
    headers=bearer,
)
