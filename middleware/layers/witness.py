"""What becomes of a request in the app that its head does not tell: a session that is read, a body that comes."""

from typing import Final

from tidegate.middleware.layers.asgi import Message, Receive, Scope
from tidegate.middleware.layers.sessions import SessionUse, SessionWatch, session_use, watch_session

__all__ = ["FRAMED", "Witness", "show_scope"]

FRAMED: Final = frozenset({"1.0", "1.1"})
"""Versions of HTTP in which the head of a request tells whether a body comes (RFC 9112 6.3); in later ones it need not
(RFC 9113 8.1.1)."""


_OURS: Final = frozenset({"extensions", "headers"})
"""What the app is given of its own where a request has to be put in another way."""


def show_scope(given: Scope, scope: Scope) -> None:
    """Let whoever stands further out see what the app put into the scope that it was given (its route, its endpoint),
    as they would if it had been given theirs.
    """
    if given is not scope:
        scope.update([pair for pair in given.items() if pair[0] not in _OURS])


class Witness:
    """Sees one request, or one after the other, through the app."""

    _has_body = False
    _session: SessionWatch | None = None

    def __init__(self, scope: Scope) -> None:
        self._given = scope

    def _watch(self, given: Scope, receive: Receive) -> Receive:
        """The app is about to be given this scope, and the `receive` that this answers."""
        self._given, self._session = given, watch_session(given)
        if given.get("http_version") in FRAMED:
            return receive

        async def listening() -> Message:
            message = await receive()
            if message.get("body"):
                self._has_body = True
            return message

        return listening

    @property
    def _session_use(self) -> SessionUse:
        return session_use(self._given, self._session)

    @property
    def _session_was_read(self) -> bool:
        """Whether somebody further out reads it, hit or not."""
        return self._session is not None and self._session.was_read

    def _end_session(self) -> None:
        """Something is about to be sent."""
        if self._session is not None:
            self._session.end()
