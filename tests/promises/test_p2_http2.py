"""P2 over HTTP/2, where no field need tell that a request has a body: the answer to such a GET is not stored."""

import sys
from pathlib import Path
from typing import ClassVar

import httpx2

from tests.services import Server, free_port

ROOT = Path(__file__).parents[2]


class Hypercorn(Server):
    """The page under a server that speaks HTTP/2 without TLS too."""

    name: ClassVar[str] = "hypercorn"
    start_seconds: ClassVar[float] = 60.0
    stop_seconds: ClassVar[float] = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def command(self) -> list[str]:
        """Program and arguments."""
        return [sys.executable, "-m", "hypercorn", "tests.promises.body_app:app", "-b", f"127.0.0.1:{self.port}"]

    def environment(self) -> dict[str, str]:
        """Where the page is."""
        return {"PYTHONPATH": str(ROOT)}

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            with self.client() as http:
                return http.head("/", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False

    def client(self) -> httpx2.Client:
        """Speaks HTTP/2 from the first byte on."""
        return httpx2.Client(http1=False, http2=True, base_url=f"http://127.0.0.1:{self.port}", timeout=30)


def test_a_body_that_no_field_tells_of_is_not_in_what_others_get() -> None:
    with Hypercorn() as server, server.client() as http:
        evil = http.request("GET", "/", content=iter([b"ev", b"il"]))
        assert evil.text == "2 evil"  # the server has seen no Content-Length: httpx sends none for an iterator
        first, second = http.get("/"), http.get("/")
        again = http.request("GET", "/", content=iter([b"evil"]))
    assert evil.headers["cache-status"] == 'Tidegate; fwd=miss; detail="body"'
    assert [first.text, second.text, again.text] == ["2 "] * 3
    assert first.headers["cache-status"] == "Tidegate; fwd=miss; stored"
    assert second.headers["cache-status"].startswith("Tidegate; hit")
