"""One layer on one app: the cache, for everybody, as long as the response says.

uvicorn examples.one_layer:app
"""

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tidegate import CacheLayer, MemoryStore


async def rates(_request: Request) -> JSONResponse:
    await asyncio.sleep(0.5)  # a slow query
    return JSONResponse({"EUR": 1.0, "USD": 1.08}, headers={"cache-control": "max-age=10"})


app = CacheLayer(Starlette(routes=[Route("/rates", rates)]), store=MemoryStore(), share="public")
