"""What reads replies and pushes: what becomes of several refusals, of which whoever asked raises one."""

import asyncio
import gc
from typing import Any

from redis.asyncio.connection import Connection

from tests.services import RedisServer
from tidegate.middleware.stores.ears import Ears
from tidegate.middleware.stores.redis_servers import dial


def test_a_refusal_that_nobody_looks_at_is_no_lost_exception(server: RedisServer) -> None:
    async def run() -> list[dict[str, Any]]:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        ears = Ears(lambda _: None, lambda: None)
        connection = await dial(Connection, {"host": server.host, "port": server.port})
        ears.attach(connection)
        asked = [ears.ask(b"NO-SUCH-COMMAND") for _ in range(3)]
        await asyncio.wait(asked)
        assert all("unknown command" in str(one.exception()) for one in asked[:1])
        del asked
        gc.collect()
        await ears.hang_up(connection)
        return lost

    assert asyncio.run(run()) == []
