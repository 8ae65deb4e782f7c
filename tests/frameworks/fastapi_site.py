"""The app in FastAPI. Who asks is settled in a middleware, and the dependency reads what that found.

An identity that only a dependency finds is unknown to every middleware: `dependency_site` shows what is left then.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Form, Header, Request, UploadFile, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.middleware.authentication import AuthenticationMiddleware

from tests.driver import App, User
from tests.frameworks.starlette_site import Tokens, lifespan, user_of
from tests.frameworks.surface import COOKIES, Crash, Framework, How, Refused, World, bearer, user_of_token
from tidegate import Tidegate, TidegateMiddleware
from tidegate.middleware.layers.identifying import starlette_user

__all__ = ["FASTAPI", "dependency_site"]


def current_user(request: Request) -> User | None:
    """The dependency of the handlers."""
    return user_of(request)


async def state_of(request: Request) -> AsyncIterator[str | None]:
    """A dependency that ends after the response."""
    yield getattr(request.state, "pool", None)


Asker = Annotated[User | None, Depends(current_user)]
State = Annotated[str | None, Depends(state_of)]


def sub_app(world: World) -> FastAPI:
    """What is mounted at /sub."""
    sub = FastAPI(openapi_url=None)

    @sub.get("/me")
    async def me(user: Asker, state: State) -> dict[str, Any]:
        return world.me(user, state, sub=True)

    @sub.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return world.page(sub=True)

    return sub


def readings(app: FastAPI, world: World) -> None:
    """The handlers that read."""

    @app.get("/me")
    async def me(user: Asker, state: State) -> dict[str, Any]:
        return world.me(user, state)

    @app.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return world.page()

    @app.get("/clients/{client_id}")
    async def client(client_id: str, user: Asker) -> dict[str, Any]:
        return world.client(client_id, user)

    @app.get("/report")
    async def report(tasks: BackgroundTasks, user: Asker) -> dict[str, Any]:
        tasks.add_task(world.after_report)
        return world.report(user)

    @app.get("/old")
    async def old() -> RedirectResponse:
        return RedirectResponse("/page", 301)

    @app.get("/cookies")
    async def cookies(response: Response) -> str:
        for cookie in COOKIES:
            response.set_cookie(*cookie.split("="))
        return "cookies"

    @app.get("/events")
    async def events() -> StreamingResponse:
        stream = (f"data: {event}\n\n" async for event in world.events())
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.get("/refused")
    async def refused() -> None:
        raise Refused("no")

    @app.get("/crash")
    async def crash() -> None:
        raise Crash("unhandled")


def writings(app: FastAPI, world: World) -> None:
    """The handlers that write, and the WebSocket."""

    @app.put("/title", status_code=204)
    async def title(request: Request) -> None:
        await world.retitle(await request.body())

    @app.put("/clients/{client_id}/name", status_code=204)
    async def rename(client_id: str, request: Request, user: Asker) -> None:
        world.rename(client_id, user, await request.body())

    @app.post("/upload", status_code=201)
    async def upload(file: UploadFile, field: Annotated[str, Form()]) -> dict[str, Any]:
        return {"field": field, "name": file.filename, "size": len(await file.read())}

    @app.post("/stream")
    async def stream(request: Request) -> dict[str, int]:
        return await world.read(request.stream())

    @app.post("/allow", status_code=204)
    async def allow() -> None:
        world.allow()

    @app.websocket("/ws")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(f"echo {text}")


async def refusal(_request: Request, error: Exception) -> Response:
    """The exception handler."""
    return JSONResponse({"refused": str(error)}, status_code=409)


def build(world: World, tide: Tidegate | None, how: How) -> App:
    """The app; `app.add_middleware` puts what is added later further out."""
    app = FastAPI(lifespan=lifespan, exception_handlers={Refused: refusal}, openapi_url=None)
    readings(app, world)
    writings(app, world)
    sub = sub_app(world)
    app.mount("/sub", tide(sub) if tide is not None and how == "sub" else sub)
    if tide is not None and how == "around":
        return AuthenticationMiddleware(tide(app), backend=Tokens())
    if tide is not None and how == "inside":
        app.add_middleware(TidegateMiddleware, tide=tide)
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    return app


def dependency_site(world: World) -> FastAPI:
    """An app whose identity is known only within a dependency, which reads the token itself."""
    app = FastAPI(openapi_url=None)

    def by_token(authorization: Annotated[str | None, Header()] = None) -> User | None:
        return user_of_token(authorization)

    @app.get("/me")
    async def me(user: Annotated[User | None, Depends(by_token)]) -> dict[str, Any]:
        return world.me(user, None)

    @app.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return world.page()

    return app


FASTAPI = Framework(name="fastapi", build=build, identify=lambda _how: starlette_user, headers=bearer)
