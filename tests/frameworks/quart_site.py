"""The app in Quart. Who asks is in Quart's own signed session cookie, which the layers outside can read as well."""

from collections.abc import Sequence
from typing import Any

from hypercorn.middleware import DispatcherMiddleware
from itsdangerous import BadSignature
from quart import Quart, current_app, g, jsonify, redirect, request, session, websocket
from quart.sessions import SecureCookieSessionInterface

from tests.driver import App, User
from tests.frameworks.surface import COOKIES, PEOPLE, Crash, Framework, How, Refused, World
from tidegate import Identity, Tidegate

__all__ = ["QUART"]

SECRET = "a secret of the tests"


def new_app(name: str) -> Quart:
    """An empty app that knows who asks."""
    app = Quart(name)
    app.secret_key = SECRET

    @app.before_request
    async def authenticate() -> None:
        g.user = PEOPLE.get(session.get("token", ""))

    return app


SERIALIZER = SecureCookieSessionInterface().get_signing_serializer(new_app(__name__))


def identify(scope: Any) -> Identity | None:
    """Whom the session cookie names."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode("latin-1").split("; "):
                key, _, signed = pair.partition("=")
                if key == "session":
                    return _named(signed)
    return None


def _named(signed: str) -> Identity | None:
    try:
        user = PEOPLE.get(SERIALIZER.loads(signed).get("token", ""))
    except BadSignature:
        return None
    return Identity(user.tenant, user.username) if user is not None else None


def headers(token: str) -> Sequence[tuple[str, str]]:
    """The cookie of somebody who has signed in."""
    return [("cookie", f"session={SERIALIZER.dumps({'token': token})}")]


def state() -> str | None:
    """What the start has left."""
    return current_app.config.get("POOL")


def user_of() -> User | None:
    """Whom `before_request` found."""
    return g.user


def sub_app(world: World) -> Quart:
    """What is mounted at /sub."""
    sub = new_app("sub")

    @sub.get("/me")
    async def me() -> Any:
        return world.me(user_of(), state(), sub=True)

    @sub.get("/page")
    async def page() -> Any:
        return world.page(sub=True)

    return sub


def readings(app: Quart, world: World) -> None:
    """The handlers that read."""

    @app.get("/me")
    async def me() -> Any:
        return world.me(user_of(), state())

    @app.get("/page")
    async def page() -> Any:
        return world.page()

    @app.get("/clients/<client_id>")
    async def client(client_id: str) -> Any:
        return world.client(client_id, user_of())

    @app.get("/report")
    async def report() -> Any:
        current_app.add_background_task(world.after_report)
        return world.report(user_of())

    @app.get("/old")
    async def old() -> Any:
        return redirect("/page", 301)

    @app.get("/cookies")
    async def cookies() -> Any:
        return "cookies", 200, [("set-cookie", cookie) for cookie in COOKIES]

    @app.get("/events")
    async def events() -> Any:
        stream = (f"data: {event}\n\n".encode() async for event in world.events())
        response = await current_app.make_response(
            (stream, {"content-type": "text/event-stream", "cache-control": "no-store"})
        )
        response.timeout = None  # type: ignore[union-attr]
        return response

    @app.get("/refused")
    async def refused() -> Any:
        raise Refused("no")

    @app.get("/crash")
    async def crash() -> Any:
        raise Crash("unhandled")


def writings(app: Quart, world: World) -> None:
    """The handlers that write, and the WebSocket."""

    @app.put("/title")
    async def title() -> Any:
        await world.retitle(await request.get_data())
        return "", 204

    @app.put("/clients/<client_id>/name")
    async def rename(client_id: str) -> Any:
        world.rename(client_id, user_of(), await request.get_data())
        return "", 204

    @app.post("/upload")
    async def upload() -> Any:
        form, files = await request.form, await request.files
        file = files["file"]
        return {"field": form["field"], "name": file.filename, "size": len(file.read())}, 201

    @app.post("/stream")
    async def stream() -> Any:
        return await world.read(request.body)

    @app.post("/allow")
    async def allow() -> Any:
        world.allow()
        return "", 204

    @app.websocket("/ws")
    async def echo() -> None:
        await websocket.accept()
        while True:
            await websocket.send(f"echo {await websocket.receive()}")


def build(world: World, tide: Tidegate | None, how: How) -> App:
    """The app and its sub-app under Hypercorn's dispatcher, as Quart has no mounts of its own."""
    app, sub = new_app("site"), sub_app(world)
    readings(app, world)
    writings(app, world)

    @app.before_serving
    async def make() -> None:
        app.config["POOL"] = "made"

    @app.errorhandler(Refused)
    async def refusal(error: Refused) -> Any:
        return jsonify(refused=str(error)), 409

    if tide is not None and how == "inside":
        app.asgi_app = tide(app.asgi_app)  # type: ignore[method-assign]
    if tide is not None and how == "sub":
        sub.asgi_app = tide(sub.asgi_app)  # type: ignore[method-assign]
    both = DispatcherMiddleware({"/sub": sub, "": app})  # type: ignore[dict-item]
    return tide(both) if tide is not None and how == "around" else both


QUART = Framework(name="quart", build=build, identify=lambda _how: identify, headers=headers)
