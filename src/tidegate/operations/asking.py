"""One plain HTTP request with what Python brings, for commands that need no extra.

Guaranteed: redirects are not followed, an answer of any status is an answer, no more than `limit` bytes of it are kept.
Proxies are those of the environment (`http_proxy`, `no_proxy`). Blocks: call it in a thread where a loop runs.
"""

import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

__all__ = ["Answer", "Unanswered", "ask"]

_CHUNK: Final = 64 * 1024
_KEPT: Final = "!#$%&'()*+,/:;=?@[]~"
"""What stands in a URL as it is; anything else but letters and digits is encoded."""


class Unanswered(Exception):
    """Nobody answered, or not with HTTP. kind: of what went wrong, without the URL, which may hold a token."""

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "reason", None)  # urllib wraps what the socket says
        cause = reason if isinstance(reason, Exception) else error
        super().__init__(str(cause) or type(cause).__name__)
        self.kind = type(cause).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """status, header fields with their names in lower case, and the body up to the limit; whole: nothing was cut."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    whole: bool

    def header(self, name: str) -> str | None:
        """The first field of this name."""
        return next((value.decode("latin-1") for each, value in self.headers if each == name.encode()), None)


class _AsItIs(HTTPErrorProcessor):
    """Neither follows a redirect nor raises for a status."""

    def http_response(self, request: Request, response: Any) -> Any:
        return response

    https_response = http_response


def ask(
    method: str,
    url: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    timeout: float = 10.0,
    limit: int = 16 * 1024 * 1024,
) -> Answer:
    """Send a request without a body. timeout: seconds for each step, and for the body. limit: bytes of it to keep.

    Fields of one name are sent as one, joined as RFC 9110 5.3 has it; a user in the URL as Authorization (RFC 7617).

    Raises:
        Unanswered: if there is no answer, or none that is HTTP.
    """
    fields: dict[str, str] = {"accept": "*/*", "user-agent": "tidegate"}
    own: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        own[name] = f"{own[name]}{'; ' if name == 'cookie' else ', '}{value}" if name in own else value
    try:
        if not url.lower().startswith(("http://", "https://")):  # urllib opens files, too
            raise ValueError("not an http or https URL")
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        if at:
            fields["authorization"] = f"Basic {b64encode(unquote(login).encode()).decode()}"
            url = parts._replace(netloc=host).geturl()
        request = Request(quote(url, safe=f"{_KEPT}%"), method=method, headers=fields | own)
        with build_opener(_AsItIs()).open(request, timeout=timeout) as answer:
            body, whole = _body(answer, limit, time.monotonic() + timeout)
            pairs = tuple(
                (key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in answer.getheaders()
            )
            return Answer(status=answer.status, headers=pairs, body=body, whole=whole)
    except (OSError, HTTPException, ValueError) as error:
        raise Unanswered(error) from error


def _body(answer: Any, limit: int, deadline: float) -> tuple[bytes, bool]:
    """What is not kept is read all the same, within the time: a cache stores only what came to its end."""
    kept = bytearray()
    while chunk := answer.read1(_CHUNK):
        if len(kept) < limit:
            kept += chunk[: limit - len(kept) + 1]
        if time.monotonic() > deadline:
            return bytes(kept[:limit]), False
    return bytes(kept[:limit]), len(kept) <= limit
