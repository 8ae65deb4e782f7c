"""Whether the app reads or changes the session that a middleware keeps in the scope.

A session middleware further out names Cookie in Vary, and sets its cookie, when the response passes it: the layers have
decided by then. One further in may forget to. So the layers look at the session themselves. What an app has read of a
session is as if the response said `Vary: Cookie`, and what has changed one is as if it had Set-Cookie.

Sessions of Starlette and Django say whether they were read and changed. Of others (Litestar's are dicts) nobody can see
that they were read, so they count as read; changed, if their own values are other ones than before.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from tidegate.middleware.layers.asgi import Scope

__all__ = ["VARY_COOKIE", "SessionUse", "SessionWatch", "session_use", "watch_session"]

SessionUse = Literal["none", "read", "changed"]

VARY_COOKIE: Final = (b"vary", b"Cookie")
"""What a session middleware adds to a response for which the session was read."""


class SessionWatch:
    """A session from before the app runs until its response starts.

    was_read: somebody further out has read it, as who finds out by it who asks. The session is told that nobody has,
        until `end`: only so can be seen whether the app does.
    """

    __slots__ = ("_before", "_over", "_scope", "_session", "_use", "was_read")

    def __init__(self, scope: Scope, session: Any) -> None:
        self.was_read = False
        self._scope = scope
        self._session = session
        self._before: Mapping[str, Any] | None = None
        self._over = False
        self._use: SessionUse = "none"
        if _speaks(session):
            self.was_read = session.accessed
            if self.was_read:
                session.accessed = False
        elif isinstance(session, dict):
            self._before = cast(dict[str, Any], session).copy()

    def use(self) -> SessionUse:
        """What the app has done by now, or had done in the end."""
        if self._over:
            return self._use
        session = self._scope.get("session")
        if session is not self._session:
            return "changed"
        if self._before is not None:
            return "read" if session == self._before else "changed"
        return _use_of(session)

    def end(self) -> None:
        """Before whoever stands further out looks: the session says what it said before, and what the app added."""
        if not self._over:
            self._use, self._over = self.use(), True
            if self.was_read:
                self._session.accessed = True


def watch_session(scope: Scope) -> SessionWatch | None:
    """Begin to watch, where there is a session."""
    session = scope.get("session")
    return SessionWatch(scope, session) if session is not None else None


def session_use(scope: Scope, watch: SessionWatch | None) -> SessionUse:
    """What the app did with the session. watch: None where there was none; the app may have put one there since."""
    if watch is not None:
        return watch.use()
    session = scope.get("session")
    return "none" if session is None else _use_of(session)


def _use_of(session: Any) -> SessionUse:
    if getattr(session, "modified", False):
        return "changed"
    return "read" if getattr(session, "accessed", True) else "none"


def _speaks(session: Any) -> bool:
    return isinstance(getattr(session, "accessed", None), bool) and isinstance(getattr(session, "modified", None), bool)
