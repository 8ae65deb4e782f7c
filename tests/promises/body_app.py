"""The application of `test_p2_http2.py`, under Hypercorn: a page that shows the body of its request."""

from typing import Any

from prometheus_client import CollectorRegistry

from tidegate import RoutePolicy, Tidegate

__all__ = ["app"]


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Says with which version it was asked, and what was sent."""
    sent = b""
    while (message := await receive()).get("more_body", False):
        sent += message["body"]
    said = scope["http_version"].encode() + b" " + sent + message.get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said})


app = Tidegate(policies=[RoutePolicy(route="/", ttl=600, share="public")], registry=CollectorRegistry())(page)
