"""The controller as a process: attends ten times a second, listens for alerts, stops cleanly when asked."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final

import uvicorn

from tidegate.errors import RolloutError, TidegateError
from tidegate.rollout.controller import Controller
from tidegate.rollout.store import Journal
from tidegate.rollout.view import summary
from tidegate.rollout.web import RolloutWeb

__all__ = ["Daemon"]

_POLL: Final = 0.1
"""Seconds between two looks at the journal: a person's abort is noticed within this time."""
_STUCK: Final = 10.0
"""Seconds without a look after which /healthz says so."""

_log = logging.getLogger("tidegate.rollout")


class Daemon:
    """Runs one controller until `stop` is set.

    listen: `host:port` for alerts and status, or None. token: what a sender of alerts must show.
    clock: seconds since the epoch.
    """

    def __init__(
        self,
        controller: Controller,
        journal: Journal,
        *,
        clock: Callable[[], float],
        listen: str | None = None,
        token: str = "",
    ) -> None:
        self._controller = controller
        self._journal = journal
        self._clock = clock
        self._listen = listen
        self._token = token
        self._looked = clock()

    async def run(self, stop: asyncio.Event) -> None:
        """Attend until `stop` is set, then finish what is being written and give the lease back.

        Raises:
            RolloutError: if the address cannot be listened on.
        """
        async with self._serving():
            told = ""
            while not stop.is_set():
                try:
                    await self._controller.attend()
                    self._looked, told = self._clock(), ""
                except TidegateError as error:
                    self._controller.metrics.errors.labels("journal").inc()
                    if str(error) != told:
                        told = str(error)
                        _log.error("%s", told)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _POLL)
            await self._controller.close()

    def status(self) -> list[dict[str, Any]]:
        """What /status shows."""
        return [summary(rollout, self._journal.entries(rollout.id)) for rollout in self._journal.all()]

    def _healthy(self) -> bool:
        return self._clock() - self._looked < _STUCK

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None, None]:
        """The web app served while inside; nothing if there is no address."""
        if self._listen is None:
            yield
            return
        app = RolloutWeb(
            alert=self._controller.alert,
            status=self.status,
            healthy=self._healthy,
            metrics=self._controller.metrics,
            token=self._token,
            clock=self._clock,
        )
        server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        bound = _bind(self._listen)
        _log.info("listening on http://%s:%d", *bound.getsockname()[:2])
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving
            bound.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the daemon has one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise RolloutError(f"cannot listen on {listen}: {error.strerror or error}") from error
