"""Hits in front of an endpoint that works as most do: a structure that a framework makes JSON of."""

import json
from typing import Any, cast

from fastapi import FastAPI

from tests.bench.exchanges import POLICY, SIZES, SMALL, USERS, five, references, same_page
from tests.bench.frame import Bench, Case, Target
from tests.driver import App

__all__ = ["BENCHES"]

ENDPOINT = "FastAPI endpoint"


def fastapi() -> App:
    """A FastAPI application whose one endpoint returns a structure that is 2 KiB of JSON."""
    app = FastAPI()
    told: dict[str, Any] = {
        "clients": [{"id": number, "name": f"client {number}", "open": number % 2 == 0} for number in range(40)],
        "note": "",
    }
    told["note"] = "." * (SIZES[SMALL] - len(json.dumps(told, separators=(",", ":"))))

    @app.get("/page")
    async def page() -> dict[str, Any]:
        return told

    return cast(App, app)


def endpoint(bench: Bench) -> list[Case]:
    """The endpoint, and hits of five layers in front of it."""
    app = five(bench, fastapi(), POLICY)
    bench.warm(app, same_page()(len(USERS)))
    tenfold = Target(of_others=((f"{ENDPOINT}, {SMALL}", 0.1),))

    def case(name: str, app: App, *, hit: bool, target: Target | None = None) -> Case:
        return bench.requests(
            name,
            app,
            same_page(),
            lambda answer: (answer.status, len(answer.body), answer.hit) == (200, SIZES[SMALL], hit),
            size=SMALL,
            target=target,
        )

    return [
        *references(bench, SMALL),
        case(ENDPOINT, fastapi(), hit=False),
        case("hit, five layers on FastAPI", app, hit=True, target=tenfold),
    ]


BENCHES = {"endpoint": endpoint}
