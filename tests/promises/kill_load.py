"""Load for the measurement of `kill`: a few users who ask again and again, each request noted in a file.

`python -m tests.promises.kill_load PORT FILE`: runs until its standard input ends. One line a request: when it was
sent, when its answer had come (seconds since the epoch), status (0: none), whether the cache layer had a hand in it,
worker.
"""

import http.client
import sys
import threading
import time
from typing import TextIO

THREADS = 8
PAUSE = 0.02
REQUESTS_A_CONNECTION = 5
"""Then a new one is made, so that every worker gets its share."""


def main(port: int, file: str) -> None:
    """Ask until standard input ends."""
    ended = threading.Event()
    with open(file, "a", encoding="utf-8") as notes:
        threads = [threading.Thread(target=_ask, args=(port, f"user-{n}", notes, ended)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        ended.set()
        for thread in threads:
            thread.join()


def _ask(port: int, user: str, notes: TextIO, ended: threading.Event) -> None:
    headers = {"x-tenant": "acme", "x-user": user}
    while not ended.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            for _ in range(REQUESTS_A_CONNECTION):
                sent = time.time()
                connection.request("GET", "/me", headers=headers)
                response = connection.getresponse()
                response.read()
                touched = int(response.getheader("cache-status") is not None)
                worker = response.getheader("x-worker", "")
                notes.write(f"{sent} {time.time()} {response.status} {touched} {worker}\n")
                notes.flush()
                ended.wait(PAUSE)
        except (OSError, http.client.HTTPException):
            notes.write(f"{time.time()} {time.time()} 0 0 -\n")
            notes.flush()
            ended.wait(PAUSE)
        finally:
            connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
