"""What the controller answers over HTTP: alerts come in, status and metrics go out. One small ASGI app.

| request | who | answer |
|---|---|---|
| `POST /alerts` | Alertmanager's webhook, version 4 | 200 and the rollouts that were shut |
| `POST /api/v2/alerts` | Prometheus itself, under `alerting.alertmanagers` | the same |
| `GET /status` | people, scripts | JSON: every rollout with its numbers and its log |
| `GET /metrics`, `GET /healthz` | Prometheus, a supervisor | 200; healthz 503 when the controller is stuck |

A POST must show the token, as `Authorization: Bearer …` or as the password of basic authentication. What a GET shows
(names of rollouts, flags, numbers) needs none: listen where only those may ask who should.
"""

import base64
import binascii
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tidegate.errors import TidegateError
from tidegate.rollout.metrics import RolloutMetrics

__all__ = ["RolloutWeb", "firing"]

MAX_BODY: Final = 1024 * 1024
"""Bytes of a POST; Alertmanager sends some kilobytes."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("tidegate.rollout")


class _Refused(Exception):
    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status
        self.told = told


class RolloutWeb:
    """The ASGI app.

    alert: told the labels of each firing alert; answers the names of the rollouts that it shut.
    status: everything that /status shows. healthy: whether the controller is alive. clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        alert: Callable[[Mapping[str, str]], Awaitable[Sequence[str]]],
        status: Callable[[], Any],
        healthy: Callable[[], bool],
        metrics: RolloutMetrics,
        token: str,
        clock: Callable[[], float],
    ) -> None:
        if not token:
            raise ValueError("an empty token would let everybody shut flags")
        self._alert = alert
        self._status = status
        self._healthy = healthy
        self._metrics = metrics
        self._token = token.encode()
        self._clock = clock

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request; lifespan and WebSockets are not spoken."""
        if scope["type"] != "http":
            raise ValueError(f"the controller speaks HTTP only, not {scope['type']}")
        try:
            status, content_type, body = await self._answer(scope, receive)
        except _Refused as refused:
            status, content_type, body = refused.status, "application/json", _json({"error": refused.told})
        except TidegateError as error:
            self._metrics.errors.labels("web").inc()
            _log.warning("%s %s failed: %s", scope["method"], scope["path"], error)
            status, content_type, body = 503, "application/json", _json({"error": str(error)})
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="tidegate"'))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: _Scope, receive: _Receive) -> tuple[int, str, bytes]:
        path = scope["path"].rstrip("/") or "/"
        if path not in ("/alerts", "/api/v2/alerts", "/status", "/metrics", "/healthz"):
            raise _Refused(404, "there is /alerts, /api/v2/alerts, /status, /metrics and /healthz")
        posting = path in ("/alerts", "/api/v2/alerts")
        if scope["method"] not in (("POST",) if posting else ("GET", "HEAD")):
            raise _Refused(405, f"{path} takes {'POST' if posting else 'GET'}")
        if posting:
            self._authorise(scope)
            return 200, "application/json", _json({"shut": await self._alerts(await _body(receive))})
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
        if path == "/status":
            return 200, "application/json", _json(self._status())
        healthy = self._healthy()
        return (200 if healthy else 503), "text/plain", b"ok\n" if healthy else b"the controller does not tick\n"

    def _authorise(self, scope: _Scope) -> None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, rest = given.partition(b" ")
        shown = rest.strip()
        if scheme.lower() == b"basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except binascii.Error:
                shown = b""
        elif scheme.lower() != b"bearer":
            shown = b""
        if not hmac.compare_digest(shown, self._token):
            raise _Refused(401, "show the alert token: Authorization: Bearer …, or as the password of basic")

    async def _alerts(self, body: bytes) -> list[str]:
        shut: list[str] = []
        for labels in firing(body, self._clock()):
            shut.extend(name for name in await self._alert(labels) if name not in shut)
        return shut


def firing(body: bytes, now: float) -> list[Mapping[str, str]]:
    """The labels of each firing alert in a POST from Alertmanager (an object) or Prometheus (a list)."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"the body is not JSON: {error}") from error
    alerts: Any = cast(Mapping[str, Any], document).get("alerts") if isinstance(document, dict) else document
    if not isinstance(alerts, list):
        raise _Refused(400, 'send {"version": "4", "alerts": [...]} or a list of alerts')
    items = cast(Sequence[Any], alerts)
    found: list[Mapping[str, str]] = []
    for index, alert in enumerate(items):
        labels: Any = cast(Mapping[str, Any], alert).get("labels") if isinstance(alert, dict) else None
        if not isinstance(labels, dict):
            raise _Refused(400, f"alert {index} has no labels")
        if _is_firing(cast(Mapping[str, Any], alert), index, now):
            found.append({str(name): str(value) for name, value in cast(Mapping[Any, Any], labels).items()})
    return found


def _is_firing(alert: Mapping[str, Any], index: int, now: float) -> bool:
    """Alertmanager says so; Prometheus gives an end, which is past once an alert is resolved, or year 1 for none."""
    if "status" in alert:
        return bool(alert["status"] == "firing")
    ends = alert.get("endsAt")
    if not ends:
        return True
    try:
        end = datetime.fromisoformat(ends)
    except (TypeError, ValueError):
        raise _Refused(400, f"alert {index} has endsAt {ends!r}, which is not an RFC 3339 time") from None
    return end.year == 1 or end.timestamp() > now


async def _body(receive: _Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the sender left")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _Refused(413, f"more than {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
