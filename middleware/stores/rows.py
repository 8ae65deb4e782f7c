"""The records of a memory store in rows: where each stands, what it weighs, and which goes when there is no room."""

from array import array
from math import inf
from typing import Final

from tidegate.middleware.core.softening import softened
from tidegate.middleware.metrics import Metrics, counting
from tidegate.middleware.stores.base import Entry, Record, Variants
from tidegate.middleware.stores.fair import Fair
from tidegate.middleware.stores.ledger import Judge
from tidegate.middleware.stores.packing import (
    Held,
    Packed,
    Warm,
    measured,
    opened,
    packed,
    taken_by,
)
from tidegate.middleware.stores.pressing import Form, Forms, released, size_of

__all__ = ["ROW", "Rows", "size_in"]

_SWEPT: Final = 32
"""Rows that are looked through at once for what nobody can be served any more."""

_PAUSE: Final = 8
"""Records that must go from one such look that found nothing to the next."""

_MORE: Final = 64
"""Rows that are added at once: each column is told once for all of them."""

ROW: Final = 200
"""Bytes of an entry's columns and its place in the dictionary (85), and of the objects of key and record with what the
allocator rounds them up to (115)."""

_NO_KEYS: Final = (None,) * _MORE


class Rows:
    """The dictionary has what an entry is held as, which knows its row; what changes with time stands in columns: an
    object for each entry would take twice the memory, and the garbage collector would visit it.

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
        self._count_evicted = counting(metrics.limits.labels("memory-evicted"))
        self._count_tenant = counting(metrics.limits.labels("memory-tenant-share"))
        self._empty()

    def _empty(self) -> None:
        """No records."""
        self._held: dict[bytes, Packed | Held] = {}
        self._free: list[int] = []
        self._keys: list[bytes | None] = []
        """Of each row; None where it is free."""
        self._expires = array("d")
        self._valid_at = array("I")
        """The ledger's last stamp when the record was last found valid."""
        self._forms = Forms(most=self._max_bytes // 16)
        self._warm = Warm(room=self._max_bytes)
        self._fair = Fair(max_bytes=self._max_bytes, max_entries=self._max_entries)
        self._used = self._fair.used
        self._bytes = 0
        self._swept = self._pause = 0
        """Where to look next for what nobody can be served any more, and after how many records that must go."""

    def _write(self, key: bytes, record: Record, expires: float, since: int) -> bool:
        """Hold a record, instead of the one that is there; False if it is too large."""
        if not isinstance(record, Entry):
            size = size_of(key, record)
            if size > self._max_entry_bytes:
                return False
            row = self._row_for(key, record.scope, size, expires, since)
            held = Held()
            held.record, held.row, held.expires, held.valid_at, held.packed = record, row, expires, since, None
            self._held[key] = held
            return True
        body = record.body
        if len(body) > self._max_entry_bytes:
            return False
        form, own = self._forms.press(record)
        size = size_in(key, form, taken_by(len(own), len(body)))
        if size > self._max_entry_bytes:
            self._forms.let_go(form)
            return False
        row = self._row_for(key, form.owner, size, expires, since)
        self._held[key] = packed(row, form.number, record.born, own, body)
        return True

    def _row_for(self, key: bytes, owner: str, size: int, expires: float, since: int) -> int:
        """A free row for what is to be held under a key, instead of the one that it has."""
        if key in self._held:
            self._drop(key)
        free = self._free
        row = free.pop() if free else self._more()
        self._keys[row] = key
        self._expires[row] = expires
        try:
            self._valid_at[row] = since
        except OverflowError:
            self._found_valid(row, since)
        self._bytes += size
        self._fair.add(row, owner, size)
        return row

    def _more(self) -> int:
        """One of the next new rows; the others are free, the first on top, for they are to come in their order."""
        row = len(self._keys)
        self._keys.extend(_NO_KEYS)
        for numbers in (self._expires, self._valid_at):
            numbers.frombytes(bytes(_MORE * numbers.itemsize))
        self._fair.more(_MORE)
        self._free.extend(range(row + _MORE - 1, row, -1))
        return row

    def _found_valid(self, row: int, stamp: int) -> None:
        """Note it. The column is made wider when there were more purges than it has room for."""
        try:
            self._valid_at[row] = stamp
        except OverflowError:
            self._valid_at = array("Q", self._valid_at)
            self._valid_at[row] = stamp

    def _make_room(self, now: float) -> None:
        """Let go of one record of the largest owner, or of some that nobody can be served where they are met."""
        if self._pause:
            self._pause -= 1
        elif self._sweep(now):
            return
        key = self._keys[self._fair.victim()]
        assert key is not None
        self._drop(key)
        self._evictions += 1
        self._count_evicted()
        if len(self._fair) > 1:
            self._count_tenant()

    def _sweep(self, now: float) -> bool:
        """Let go of what expired or was purged, among the next few rows; returns whether there was any.

        Whoever asks for nothing any more drops nothing by asking, and others are not to make room for that.
        """
        keys, expires, valid_at, stamp = self._keys, self._expires, self._valid_at, self._ledger.stamp
        start = self._swept
        ends = expires[start : start + _SWEPT]
        stop = start + len(ends)
        self._swept, before = stop if stop < len(keys) else 0, len(self._held)
        if min(ends) <= now or valid_at[start:stop].count(stamp) < len(ends):
            for row in range(start, stop):
                key = keys[row]
                if key is None:
                    expires[row] = inf  # not to be met again for nothing
                    self._found_valid(row, stamp)
                elif expires[row] <= now or not self._is_valid(key, row):
                    self._drop(key)
        found = len(self._held) < before
        self._pause = 0 if found else _PAUSE
        return found

    def _is_valid(self, key: bytes, row: int) -> bool:
        """Whether the record is newer than every purge of its tags; looked up once after each purge."""
        stamp, ledger = self._ledger.stamp, self._ledger
        if self._valid_at[row] != stamp:
            record = self._record(self._held[key])
            if isinstance(record, Entry):
                if not ledger.allows(record, self._valid_at[row]):
                    return False
                if ledger.aimed and (at := ledger.softened(record)) is not None:
                    self._soften(key, row, softened(record, at))
            self._found_valid(row, stamp)
        return True

    def _record(self, held: Packed | Held) -> Record:
        """The record, whatever it is held as."""
        if isinstance(held, Held):
            return held.record
        _, number, born, own, body = opened(held)
        return released(self._form(number), own, body, born)

    def _form(self, number: int) -> Form:
        form = self._forms.numbered[number]
        assert form is not None
        return form

    def _weighed(self, key: bytes, held: Packed | Held) -> tuple[int, Form | None, int]:
        """Row and form of a record, if it is an entry, and what it takes."""
        if isinstance(held, Held):
            if held.packed is None:
                return held.row, None, size_of(key, held.record)
            held = held.packed
        row, number, taken = measured(held)
        form = self._form(number)
        return row, form, size_in(key, form, taken)

    def _warmed(self, key: bytes, packed: Packed, parts: tuple[int, int, float, bytes, bytes]) -> Entry:
        """Hold an entry as it is served, from now on. parts: as `opened` gives them."""
        row, number, born, own, body = parts
        form = self._forms.numbered[number]
        assert form is not None
        held = Held()
        held.record = entry = released(form, own, body, born)
        held.row, held.expires, held.valid_at, held.packed = row, self._expires[row], self._valid_at[row], packed
        self._held[key] = held  # with all that it is served by
        cold = self._warm.hold(held, packed, form.pieces)
        if cold is not None:
            for each in cold:
                its = self._keys[each.row]
                assert its is not None
                assert each.packed is not None
                self._held[its] = each.packed
        return entry

    def _soften(self, key: bytes, row: int, entry: Entry) -> None:
        """Put an entry in the place of the one of which it was made. It may take more: it may have a form alone."""
        held = self._held[key]
        _, form, before = self._weighed(key, held)
        assert form is not None
        if isinstance(held, Held):
            self._warm.let_go(row)
        self._forms.let_go(form)
        form, own = self._forms.press(entry)
        self._held[key] = packed(row, form.number, entry.born, own, entry.body)
        grown = size_in(key, form, taken_by(len(own), len(entry.body))) - before
        self._bytes += grown
        self._fair.grow(form.owner, grown)

    def _drop(self, key: bytes) -> None:
        held = self._held.pop(key)
        if isinstance(held, Held):
            row, owner, size = self._cooled(key, held)
        else:
            row, number, taken = measured(held)
            form = self._forms.numbered[number]
            assert form is not None
            size, owner = ROW + len(key) + taken, form.owner  # as `size_in`, which a call would double
            if not form.shared:
                size += form.weight
            form.rows -= 1
            if not form.rows:
                self._forms.forget(form)
        self._keys[row] = None
        self._free.append(row)
        self._bytes -= size
        self._fair.remove(row, owner, size)

    def _cooled(self, key: bytes, held: Held) -> tuple[int, str, int]:
        """Let go of what is held as it is served; returns its row, its owner, and what it took."""
        row, form, size = self._weighed(key, held)
        if form is None:
            assert isinstance(held.record, Variants)
            return row, held.record.scope, size
        self._warm.let_go(row)
        self._forms.let_go(form)
        return row, form.owner, size


def size_in(key: bytes, form: Form, taken: int) -> int:
    """Bytes that an entry takes, with its form if no other may have that. taken: by own part and body."""
    size = ROW + len(key) + taken
    return size if form.shared else size + form.weight
