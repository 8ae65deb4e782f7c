"""An Unleash that answers JSON of another shape than expected: a proxy in front of it, or a version to come."""

import asyncio
import json
from typing import Any

import pytest

from tidegate.errors import FlagError
from tidegate.rollout.actuator_unleash import UnleashActuator

GRADUAL = {"id": "1", "name": "flexibleRollout", "parameters": {"rollout": "10", "stickiness": "tenantId"}}


async def asked(answer: Any, method: str, *arguments: Any) -> Any:
    """What an actuator makes of a server that answers everything with 200 and this."""
    body = json.dumps(answer).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            await writer.drain()

    connections: list[asyncio.Task[Any] | None] = []

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:  # the actuator has closed its connection
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(guarded, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        actuator = UnleashActuator(f"http://127.0.0.1:{port}", "token")
        try:
            return await getattr(actuator, method)(*arguments)
        finally:
            await actuator.close()
            await asyncio.gather(*(task for task in connections if task is not None))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"enabled": "yes", "strategies": []},
        {"enabled": True, "strategies": None},
        {"enabled": True, "strategies": ["flexibleRollout"]},
        {"enabled": True, "strategies": [{**GRADUAL, "parameters": None}]},
    ],
)
def test_an_environment_that_is_not_understood_is_an_error_that_says_so(answer: Any) -> None:
    with pytest.raises(FlagError, match="'flag' in production in a way not understood"):
        asyncio.run(asked(answer, "read", "flag", "production"))


@pytest.mark.parametrize("answer", [{"events": None}, {"events": ["x"]}, {}, None, {"events": [{}]}])
def test_an_event_log_that_is_not_understood_names_nobody(answer: Any) -> None:
    assert asyncio.run(asked(answer, "last_editor", "flag", "production")) is None


def test_a_flag_whose_environments_are_not_understood_is_refused() -> None:
    with pytest.raises(FlagError, match="has no environment 'production'"):
        asyncio.run(asked({"environments": [None, {"type": "x"}]}, "check", "flag", "production", "tenant"))
