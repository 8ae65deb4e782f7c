"""Keeps an entry without making it, by the form of another that is like it.

What most fills of one route store differs from what others did in three things alone: the end of the URI, an ETag, the
body. To make an `Entry` of it, and to press that field by field, takes longer than all the rest of a fill. Who knows
that the responses are alike (`layers.straight`: it has put their fields together from one plan) keeps the first of them
as an entry, takes a mould of what the store holds then, and hands it the next ones in pieces.

That it is the same comes from here: a mould is taken only of an entry that has no other parts of its own, and that no
purge of its scopes concerns; and it is of no use any more once there was a purge, in whatever scope, or its form is
gone. Then, and where a piece is too long, the next one is an entry again.
"""

from collections.abc import Mapping
from typing import Final

from tidegate.middleware.stores.pressing import DIGEST, ETAG, LENGTHS, Form, digest_in

__all__ = ["Mould", "mould_of"]

_PIECES: Final = 2
"""The end of its URI's tag, and its ETag."""

_LONGEST: Final = len(LENGTHS)


class Mould:
    """What the entries of one form have in common beyond it.

    form: theirs. digests: whether their ETags are such. beginning: of the one tag that each has. positions: theirs;
    nothing in these scopes was purged after them. stamp: the ledger's, when that was so.
    """

    __slots__ = ("beginning", "digests", "form", "positions", "stamp")

    def __init__(self, form: Form, digests: bool, beginning: str, positions: Mapping[str, int], stamp: int) -> None:
        self.form = form
        self.digests = digests
        self.beginning = beginning
        self.positions = positions
        self.stamp = stamp

    def own(self, end: bytes, etag: bytes, digest: bytes | None) -> bytes | None:
        """The own part of an entry with these pieces, as `Forms.press` gives it; None: it would have another form.

        digest: see `KeepsAlike.keep_alike`.
        """
        if digest is None:
            digest = digest_in(etag)
        if self.digests is (digest is None) or len(end) >= _LONGEST:
            return None
        return LENGTHS[len(end)] + end + (etag if digest is None else digest)


def mould_of(form: Form, positions: Mapping[str, int], stamp: int) -> Mould | None:
    """A mould of an entry with this form, if its own parts are those two alone.

    positions, stamp: the ledger's now.
    """
    _, headers, _, _, _, _, _, _, tags, held, _ = form.key
    digests = DIGEST in headers
    if not form.shared or form.pieces != _PIECES or len(tags) != 1 or not (digests or ETAG in headers):
        return None
    return Mould(form, digests, tags[0][1], positions, stamp) if dict(held) == positions else None
