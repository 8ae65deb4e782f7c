"""The records of a memory store in rows: where each stands, what it weighs, and which goes when there is no room."""

from array import array
from math import inf
from typing import Final

from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics, counting
from tidegate.middleware.stores.base import Entry, Record, Variants
from tidegate.middleware.stores.fair import Fair
from tidegate.middleware.stores.ledger import Judge
from tidegate.middleware.stores.pressing import Form, Forms, Warm, released, size_of

__all__ = ["ROW", "Rows"]

_SWEPT: Final = 32
"""Rows that are looked through at once for what nobody can be served any more."""

_PAUSE: Final = 8
"""Records that must go from one such look that found nothing to the next."""

_MORE: Final = 64
"""Rows that are added at once: each column is told once for all of them."""

ROW: Final = 260
"""Bytes of an entry's columns, its place in the dictionary (160), and the objects of key, body and own part (100)."""

_NOTHING: Final = (b"",) * _MORE
_NO_RECORDS: Final = (None,) * _MORE


class Rows:
    """What is known of each record stands in columns: an object for each would take twice the memory, and the garbage
    collector would visit it.

    Whoever calls has the store's lock. judge: says which entries are void.
    """

    def __init__(
        self, *, max_bytes: int, max_entries: int, max_entry_bytes: int, judge: Judge, metrics: Metrics
    ) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._max_entry_bytes = max_entry_bytes
        self._ledger = judge
        self._evictions = 0
        self._written = 0
        """How often a row was given to a record."""
        self._count_evicted = counting(metrics.limits.labels("memory-evicted"))
        self._count_tenant = counting(metrics.limits.labels("memory-tenant-share"))
        self._empty()

    def _empty(self) -> None:
        """No records."""
        self._rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._keys: list[bytes] = []
        self._records: list[Form | Record | None] = []
        """Of entries mostly the form alone; None where a row is free."""
        self._owns: list[bytes] = []
        self._bodies: list[bytes] = []
        self._born, self._expires = array("d"), array("d")
        self._sizes = array("I" if self._max_entry_bytes < 1 << 32 else "Q")
        self._forms = Forms(most=self._max_bytes // 16)
        self._warm = Warm(room=self._max_bytes)
        self._valid_at = array("Q")
        """The ledger's last stamp when the record was last found valid."""
        self._fair = Fair(max_bytes=self._max_bytes, max_entries=self._max_entries)
        self._used = self._fair.used
        self._bytes = 0
        self._written += 1
        self._swept = self._pause = 0
        """Where to look next for what nobody can be served any more, and after how many records that must go."""

    def _write(self, key: bytes, record: Record, expires: float, since: int) -> bool:
        """Put a record into a free row, instead of the one that is there; False if it is too large."""
        held: Form | Record = record
        if isinstance(record, Entry):
            body, born = record.body, record.born
            if len(body) > self._max_entry_bytes:
                return False
            held, own = self._forms.press(record)
            size = ROW + len(key) + len(own) + len(body)
            if not held.shared:
                size += held.weight
            owner = held.owner
        else:
            body, own, born, owner, size = b"", b"", 0.0, record.scope, size_of(key, record)
        if size > self._max_entry_bytes:
            if type(held) is Form:
                self._forms.let_go(held)
            return False
        self._place(key, held, own, body, born, expires, size, since, owner)
        return True

    def _place(
        self, key: bytes, held: Form | Record, own: bytes, body: bytes, born: float, expires: float, size: int,
        since: int, owner: str,
    ) -> None:  # fmt: skip
        """Give what is held under a key a free row, instead of the one that it has."""
        known = self._rows.get(key)
        if known is not None:
            self._drop(known)
        self._written += 1
        free = self._free
        row = free.pop() if free else self._more()
        self._keys[row] = key
        self._records[row] = held
        self._owns[row] = own
        self._bodies[row] = body
        self._born[row] = born
        self._sizes[row] = size
        self._expires[row] = expires
        self._valid_at[row] = since
        self._rows[key] = row
        self._bytes += size
        self._fair.add(row, owner, size)

    def _more(self) -> int:
        """One of the next new rows; the others are free, the first on top, for they are to come in their order."""
        row = len(self._keys)
        for column in (self._keys, self._owns, self._bodies):
            column.extend(_NOTHING)
        self._records.extend(_NO_RECORDS)
        for numbers in (self._born, self._sizes, self._expires, self._valid_at):
            numbers.frombytes(bytes(_MORE * numbers.itemsize))
        self._fair.more(_MORE)
        self._free.extend(range(row + _MORE - 1, row, -1))
        return row

    def _make_room(self, now: float) -> None:
        """Let go of one record of the largest owner, or of some that nobody can be served where they are met."""
        if self._pause:
            self._pause -= 1
        elif self._sweep(now):
            return
        self._drop(self._fair.victim())
        self._evictions += 1
        self._count_evicted()
        if len(self._fair) > 1:
            self._count_tenant()

    def _sweep(self, now: float) -> bool:
        """Let go of what expired or was purged, among the next few rows; returns whether there was any.

        Whoever asks for nothing any more drops nothing by asking, and others are not to make room for that.
        """
        records, expires, valid_at, stamp = self._records, self._expires, self._valid_at, self._ledger.stamp
        start = self._swept
        ends = expires[start : start + _SWEPT]
        stop = start + len(ends)
        self._swept, before = stop if stop < len(records) else 0, len(self._rows)
        if min(ends) <= now or valid_at[start:stop].count(stamp) < len(ends):
            for row in range(start, stop):
                if records[row] is None:
                    expires[row], valid_at[row] = inf, stamp  # not to be met again for nothing
                elif expires[row] <= now or (valid_at[row] != stamp and not self._is_valid(row)):
                    self._drop(row)
        found = len(self._rows) < before
        self._pause = 0 if found else _PAUSE
        return found

    def _is_valid(self, row: int) -> bool:
        """Whether the record is newer than every purge of its tags; looked up once after each purge."""
        stamp, ledger = self._ledger.stamp, self._ledger
        if self._valid_at[row] != stamp:
            record = self._record(row)
            if isinstance(record, Entry):
                if not ledger.allows(record, self._valid_at[row]):
                    return False
                if ledger.aimed and (at := ledger.softened(record)) is not None:
                    self._soften(row, softened(record, at))
            self._valid_at[row] = stamp
        return True

    def _record(self, row: int) -> Record | None:
        """The record of a row, whatever it is held as; None: there is none."""
        record = self._records[row]
        if type(record) is Form:
            return released(record, self._owns[row], self._bodies[row], self._born[row])
        return record  # type: ignore[return-value]  # no Form

    def _soften(self, row: int, entry: Entry) -> None:
        """Put an entry in the place of the one of which it was made. It may take more: it may have a form alone."""
        if type(form := self._warm.let_go(row) or self._records[row]) is Form:
            self._forms.let_go(form)
        self._written += 1
        held, own = self._records[row], self._owns[row] = self._forms.press(entry)
        size = ROW + len(self._keys[row]) + len(own) + len(entry.body) + (0 if held.shared else held.weight)
        grown = size - self._sizes[row]
        self._sizes[row] += grown
        self._bytes += grown
        self._fair.grow(held.owner, grown)

    def _drop(self, row: int) -> None:
        records, keys = self._records, self._keys
        record = records[row]
        if type(record) is Entry:
            record = self._warm.let_go(row)
        if type(record) is Form:
            record.rows -= 1
            if not record.rows:
                self._forms.forget(record)
            owner = record.owner
        else:
            assert isinstance(record, Variants)
            owner = record.scope
        size = self._sizes[row]
        del self._rows[keys[row]]
        keys[row] = self._owns[row] = self._bodies[row] = b""
        records[row] = None
        self._free.append(row)
        self._bytes -= size
        self._fair.remove(row, owner, size)
