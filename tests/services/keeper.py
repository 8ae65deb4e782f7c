"""The process that starts the servers and outlives whoever asked for them by a moment.

Run as a script with a socket to its parent. One request a line, one answer a line, both JSON:

    {"do": "start", "argv": […], "env": {…}, "cwd": "…", "log": "…", "user": null, "signal": 15}  →  {"pid": 4711}
    {"do": "poll", "pid": 4711}                                                  →  {"returncode": null}

Guarantees: when the parent ends, in whatever way (`kill -9` too), the socket closes, and every server is stopped in
reverse order and the workspace removed. When the keeper itself is killed, the kernel kills the servers (`PDEATHSIG`).
That signal alone would not do: it fires when the *thread* that started a server ends, and tests start servers in
threads. The keeper has one thread, so here it means what it says.

Uses the standard library alone and is started with `-I -S`, so that it is up in about 15 ms.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLITE_SECONDS = 3.0
PARENT_CHECK_SECONDS = 0.5


class Keeper:
    """Starts servers on request and knows what it takes to stop each."""

    def __init__(self, link: socket.socket, workspace: str) -> None:
        self._link = link
        self._workspace = workspace
        self._parent = os.getppid()
        self._children: dict[int, tuple[subprocess.Popen[bytes], int]] = {}
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        # What a killed server leaves behind (PostgreSQL has many processes) becomes ours to bury.
        self._prctl(PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Answer requests until the parent is gone; then stop everything."""
        pending = b""
        try:
            while data := self._receive():
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._link.sendall(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # The parent died while we answered: the same as end of file.
        finally:
            self._stop_all()
            shutil.rmtree(self._workspace, ignore_errors=True)

    def _receive(self) -> bytes:
        # A child that the parent forked holds the socket open too, so end of file alone does not tell.
        while os.getppid() == self._parent:
            if select.select([self._link], [], [], PARENT_CHECK_SECONDS)[0]:
                return self._link.recv(65536)
        return b""

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "start":
            try:
                return {"pid": self._start(request)}
            except (OSError, subprocess.SubprocessError) as error:
                return {"error": str(error)}
        child, _ = self._children[request["pid"]]
        return {"returncode": child.poll()}

    def _start(self, request: dict[str, Any]) -> int:
        user = request["user"]
        keeper = os.getpid()

        def die_with_keeper() -> None:
            self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os.kill(os.getpid(), signal.SIGKILL)

        with open(request["log"], "ab") as log:
            # The user changes before preexec_fn runs, and a change of user would clear the death signal.
            child = subprocess.Popen(
                request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=request["cwd"],
                env=request["env"],
                user=user,
                group=None if user is None else request["group"],
                extra_groups=None if user is None else [],
                start_new_session=True,
                preexec_fn=die_with_keeper,
            )
        self._children[child.pid] = (child, request["signal"])
        return child.pid

    def _stop_all(self) -> None:
        for child, polite in reversed(self._children.values()):
            if child.poll() is None:
                child.send_signal(polite)
                child.send_signal(signal.SIGCONT)  # A suspended server hears nothing.
        deadline = time.monotonic() + POLITE_SECONDS
        for child, _ in reversed(self._children.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(0.005)


if __name__ == "__main__":
    descriptor, folder = sys.argv[1:]
    Keeper(socket.socket(fileno=int(descriptor)), folder).serve()
