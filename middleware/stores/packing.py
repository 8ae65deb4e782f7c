"""How a memory store holds an entry: packed in one piece of bytes, and while it is asked for, as it is served too.

A piece of bytes is one object where the number of its row, its own part and its body would be three, each with 33 bytes
of its own and 8 wherever it is named. It costs a copy of the body when it comes, and one when it is first asked for: a
tenth of a microsecond each for 2 KiB. A large body lies apart: to copy it would take longer than it saves.
"""

from collections import OrderedDict
from struct import Struct
from typing import Final

from tidegate.middleware.stores.base import Record

__all__ = ["Held", "Packed", "Warm", "measured", "opened", "packed", "row_of", "taken_by"]

_HEAD: Final = Struct("<IIdH")
"""Row, number of the form, `born`, length of the own part. The own part follows, then the body."""

_ROW: Final = Struct("<I")

_CUT: Final = _HEAD.size

_TOGETHER: Final = 4096
"""Bytes of a body that lies with the rest."""

_LONGEST: Final = 0xFFFF
"""Bytes of an own part that do not fit in the head any more: it lies apart then."""

_APART: Final = 100
"""Bytes that it takes more where the body lies apart: a pair, and another object."""

_WARM: Final = 4096
"""Entries that are held as such, besides: who is asked for again is not put together anew each time."""

_WARM_EACH: Final = 16384
"""A smaller store holds one for so many of its bytes."""

_WHOLE: Final = 500
_PIECE: Final = 240
"""Bytes of memory that such an entry takes besides what it is put together from, and for each of its own parts."""

Packed = bytes | tuple[bytes, bytes]
"""An entry: head, own part and body in one, or the body apart."""

_pack, _unpack, _unpack_row = _HEAD.pack, _HEAD.unpack_from, _ROW.unpack_from


class Held:
    """A record that is there to be served, as long as no purge and no end of its time is in the way.

    Whoever makes one sets them all: a call of `__init__` would take longer than that. record, row, expires: never
    others, for who serves them takes no lock. valid_at: the ledger's stamp when it was last found valid.
    packed: of an entry, what it was put together from, and lies as again; None: it is another record. size: bytes that
    the entry takes besides.
    """

    __slots__ = ("expires", "packed", "record", "row", "size", "valid_at")

    record: Record
    row: int
    expires: float
    valid_at: int
    packed: Packed | None
    size: int


def packed(row: int, number: int, born: float, own: bytes, body: bytes) -> Packed:
    """An entry in this row, with the form of this number."""
    length = len(own)
    if length < _LONGEST and len(body) <= _TOGETHER:
        return b"".join((_pack(row, number, born, length), own, body))
    return _pack(row, number, born, min(length, _LONGEST)) + own, body


def opened(held: Packed) -> tuple[int, int, float, bytes, bytes]:
    """Row, number of the form, `born`, own part, and body."""
    if isinstance(held, bytes):
        row, number, born, length = _unpack(held)
        cut = _CUT + length
        return row, number, born, held[_CUT:cut], held[cut:]
    head, body = held
    row, number, born, _ = _unpack(head)
    return row, number, born, head[_CUT:], body


def measured(held: Packed) -> tuple[int, int, int]:
    """Row, number of the form, and the bytes of own part and body, as `taken_by`."""
    if isinstance(held, bytes):
        row, number, _, _ = _unpack(held)
        return row, number, len(held) - _CUT
    head, body = held
    row, number, _, _ = _unpack(head)
    return row, number, len(head) - _CUT + len(body) + _APART


def taken_by(own: int, body: int) -> int:
    """The bytes that own part and body take, with what it takes more where they are apart."""
    return own + body + _APART if body > _TOGETHER or own >= _LONGEST else own + body


def row_of(held: Packed | Held) -> int:
    """The row of a record, whatever it is held as."""
    if isinstance(held, bytes):
        row: int = _unpack_row(held)[0]
        return row
    return held.row if isinstance(held, Held) else row_of(held[0])


class Warm:
    """The entries that are held as such. Who came first goes first.

    room: bytes of the store. They may take an eighth of that, and be one in 16 KiB of it.
    """

    def __init__(self, *, room: int) -> None:
        self._most = room // 8
        self._most_rows = max(1, min(_WARM, room // _WARM_EACH))
        self._rows: OrderedDict[int, Held] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def hold(self, held: Held, packed: Packed, pieces: int) -> list[Held] | None:
        """One more, put together from this, with so many parts of its own; returns those that are too many now."""
        rows = self._rows
        rows[held.row] = held
        size = held.size = _WHOLE + _PIECE * pieces + (len(packed) if isinstance(packed, bytes) else len(packed[0]))
        self.bytes += size
        cold: list[Held] | None = None
        while self.bytes > self._most or len(rows) > self._most_rows:
            _, gone = rows.popitem(last=False)
            self.bytes -= gone.size
            if cold is None:
                cold = [gone]
            else:
                cold.append(gone)
        return cold

    def let_go(self, row: int) -> None:
        """The entry in this row is held no more."""
        self.bytes -= self._rows.pop(row).size
