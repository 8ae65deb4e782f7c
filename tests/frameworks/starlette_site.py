"""The app in Starlette. Authentication is Starlette's own middleware, outside of the layers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend
from starlette.background import BackgroundTask
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.driver import App, User
from tests.frameworks.surface import COOKIES, Crash, Framework, How, Refused, World, bearer, user_of_token
from tidegate import Tidegate, TidegateMiddleware
from tidegate.middleware.layers.identifying import starlette_user

__all__ = ["STARLETTE", "Tokens", "user_of"]


class Tokens(AuthenticationBackend):
    """Knows people by their token."""

    async def authenticate(self, conn: HTTPConnection) -> Any:
        """Credentials and user, or None."""
        user = user_of_token(conn.headers.get("authorization"))
        return (AuthCredentials(["authenticated"]), user) if user is not None else None


def user_of(request: HTTPConnection) -> User | None:
    """Whom the middleware found."""
    return request.user if request.user.is_authenticated else None


@asynccontextmanager
async def lifespan(_app: Any) -> AsyncIterator[dict[str, str]]:
    """What the handlers find in their state."""
    yield {"pool": "made"}


def sub_app(world: World) -> Starlette:
    """What is mounted at /sub."""

    async def me(request: Request) -> Response:
        return JSONResponse(world.me(user_of(request), getattr(request.state, "pool", None), sub=True))

    async def page(_request: Request) -> Response:
        return HTMLResponse(world.page(sub=True))

    return Starlette(routes=[Route("/me", me), Route("/page", page)])


def readings(world: World) -> list[Any]:
    """The handlers that read."""

    async def me(request: Request) -> Response:
        return JSONResponse(world.me(user_of(request), getattr(request.state, "pool", None)))

    async def page(_request: Request) -> Response:
        return HTMLResponse(world.page())

    async def client(request: Request) -> Response:
        return JSONResponse(world.client(request.path_params["client_id"], user_of(request)))

    async def report(request: Request) -> Response:
        return JSONResponse(world.report(user_of(request)), background=BackgroundTask(world.after_report))

    async def old(_request: Request) -> Response:
        return RedirectResponse("/page", 301)

    async def cookies(_request: Request) -> Response:
        response = Response("cookies")
        for cookie in COOKIES:
            response.set_cookie(*cookie.split("="))
        return response

    async def events(_request: Request) -> Response:
        stream = (f"data: {event}\n\n" async for event in world.events())
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def refused(_request: Request) -> Response:
        raise Refused("no")

    async def crash(_request: Request) -> Response:
        raise Crash("unhandled")

    return [
        Route("/me", me),
        Route("/page", page),
        Route("/clients/{client_id}", client),
        Route("/report", report),
        Route("/old", old),
        Route("/cookies", cookies),
        Route("/events", events),
        Route("/refused", refused),
        Route("/crash", crash),
    ]


def writings(world: World) -> list[Any]:
    """The handlers that write, and the WebSocket."""

    async def title(request: Request) -> Response:
        await world.retitle(await request.body())
        return Response(status_code=204)

    async def rename(request: Request) -> Response:
        world.rename(request.path_params["client_id"], user_of(request), await request.body())
        return Response(status_code=204)

    async def upload(request: Request) -> Response:
        async with request.form() as form:
            file: Any = form["file"]
            return JSONResponse(
                {"field": form["field"], "name": file.filename, "size": len(await file.read())}, status_code=201
            )

    async def stream(request: Request) -> Response:
        return JSONResponse(await world.read(request.stream()))

    async def allow(_request: Request) -> Response:
        world.allow()
        return Response(status_code=204)

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(f"echo {text}")

    return [
        Route("/title", title, methods=["PUT"]),
        Route("/clients/{client_id}/name", rename, methods=["PUT"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/allow", allow, methods=["POST"]),
        WebSocketRoute("/ws", echo),
    ]


async def refusal(_request: Request, error: Exception) -> Response:
    """The exception handler."""
    return JSONResponse({"refused": str(error)}, status_code=409)


def build(world: World, tide: Tidegate | None, how: How) -> App:
    """The app; `app.add_middleware` puts what is added later further out."""
    sub: App = sub_app(world)
    if tide is not None and how == "sub":
        sub = tide(sub)
    app = Starlette(
        routes=[*readings(world), *writings(world), Mount("/sub", app=sub)],
        lifespan=lifespan,
        exception_handlers={Refused: refusal},
    )
    if tide is not None and how == "around":
        return AuthenticationMiddleware(tide(app), backend=Tokens())
    if tide is not None and how == "inside":
        app.add_middleware(TidegateMiddleware, tide=tide)
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    return app


STARLETTE = Framework(name="starlette", build=build, identify=lambda _how: starlette_user, headers=bearer)
