"""An entry as the memory store holds it: a form that many entries have, and what is its own in one piece of bytes.

Entries of one route are alike: names of fields, most of their values, seconds, flags, the beginning of their tags.
As objects of its own that is four fifths of what a small entry takes. What recurs stands in the form, once for all; an
ETag, a date, the end of a URI are the entry's own, one after the other. A Content-Length that says how long the body is
is not held at all.

What recurs is learnt from what was seen twice: what occurs only once is no form's part, and fills no memory.
"""

from binascii import hexlify, unhexlify
from struct import Struct
from typing import Any, Final

from tidegate.middleware.core.records import with_body
from tidegate.middleware.stores.base import PUBLIC_SCOPE, Entry, Record

__all__ = ["DIGEST", "ETAG", "LENGTHS", "Form", "Forms", "digest_in", "owner_in", "released", "size_of"]

_REMEMBERED: Final = 4096
"""Parts of a kind that are known to recur. When there are more all are forgotten, and learnt again as they come."""

_ONCE: Final = 4096
"""Parts that were seen once; as many hashes."""

_LONGEST: Final = 128
"""Characters or bytes of a part that may recur."""

_OWN: Final = frozenset({b"age", b"content-length", b"date", b"etag", b"expires", b"last-modified", b"set-cookie"})
"""Fields whose values are one entry's own, or nearly."""

ETAG: Final = (b"etag",)
"""In the place of an ETag, whose value is the entry's own."""

DIGEST: Final = (b"etag", b'"', b'"')
"""In the place of one that is 128 bits in hexadecimal digits, as `core.validators.make_etag` makes it: the entry's own
are the bits."""

_LENGTH: Final[tuple[bytes, ...]] = ()
"""In the place of a Content-Length that says what the body says too."""

_DIGITS: Final = 32
_QUOTE: Final = ord('"')

_WIDE: Final = 255
"""Instead of the first length: they do not fit into a byte each."""

LENGTHS: Final = [bytes((number,)) for number in range(_WIDE)]
"""What stands before two own parts: the length of the first."""

_SECONDS: Final = Struct("<d")

# What CPython 3.11 takes beyond the bytes themselves; a test holds it to tracemalloc. A form: its object, its key, and
# its place among the forms. A record as it comes: the Entry and its numbers 185, the objects of key and body 66, a
# place among others, tuples. A pair: 80 in its tuple, and its two parts' objects.
_FORM: Final = 450
_RECORD: Final = 450
_PAIR: Final = 140

Key = tuple[Any, ...]
"""What of an entry is not its own, as `Forms.press` puts it together."""


class Form:
    """What entries have in common.

    key: that. pieces: how many parts each of them has of its own. owner: the scope that they are stored for.
    weight: bytes that it takes, roughly. rows: entries that have it. shared: others may come to have it; no more once
    none had it. number: its place among the store's forms, as long as an entry has it.
    """

    __slots__ = ("key", "number", "owner", "pieces", "rows", "shared", "weight")

    def __init__(self, key: Key, pieces: int, owner: str, weight: int) -> None:
        self.key = key
        self.number = 0
        self.pieces = pieces
        self.owner = owner
        self.weight = weight
        self.rows = 0
        self.shared = False


class Forms:
    """The forms of one store.

    most: bytes that shared ones may take. An entry whose form is not shared is to be weighed with its form.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._forms: dict[Key, Form] = {}
        self.numbered: list[Form | None] = []
        """All that an entry has, by their numbers."""
        self._numbers: list[int] = []
        """Those that no form has."""
        # Apart, because b"a" and "a" have one hash: they would be compared, which Python's -b warns of.
        self._fields: set[tuple[bytes, bytes]] = set()
        self._beginnings: set[str] = set()
        self._lengths: dict[int, bytes] = {}
        self._seconds: set[float] = set()
        self._once: set[int] = set()

    def __len__(self) -> int:
        return len(self._forms)

    def press(self, entry: Entry) -> tuple[Form, bytes]:
        """The form of an entry, which has a row more now, and its own part."""
        own: list[bytes] = []
        tags: list[tuple[str, str]] = []
        fields, lifetime = self._fields, entry.lifetime
        recurs = lifetime in self._seconds or self._is_learnt(self._seconds, lifetime)
        for scope, name in entry.tags:
            # Only the end of most tags is an entry's own: of a URI, or of `client:42`.
            beginning = name[: name.rfind("/") + 1]
            if beginning not in self._beginnings:
                beginning = self._beginning(name)
            end = name[len(beginning) :]
            own.append(end.encode() if end.isascii() else end.encode("utf-8", "surrogatepass"))
            tags.append((scope, beginning))
        if not recurs:
            own.append(_SECONDS.pack(lifetime))
        headers: list[tuple[bytes, ...]] = []
        for pair in entry.headers:
            if pair in fields:
                headers.append(pair)
            elif pair[0] == b"etag":
                digest = digest_in(pair[1])
                own.append(pair[1] if digest is None else digest)
                headers.append(ETAG if digest is None else DIGEST)
            else:
                headers.append(self._field(pair, entry.body, own))
        key = (
            entry.status, tuple(headers), lifetime if recurs else None, entry.stale_while_revalidate,
            entry.stale_if_error, entry.must_revalidate, entry.no_cache, entry.vary, tuple(tags), entry.positions,
            entry.own_etag,
        )  # fmt: skip
        form = self._forms.get(key)
        if form is None:
            form = self._form(key, len(own))
        form.rows += 1
        if len(own) == 2:
            first, last = own
            if len(first) < _WIDE:
                return form, LENGTHS[len(first)] + first + last
        return form, _joined(own)

    def _field(self, pair: tuple[bytes, bytes], body: bytes, own: list[bytes]) -> tuple[bytes, ...]:
        """What stands in the form for a field that is not known to recur."""
        name, value = pair
        if name == b"content-length":
            length = len(body)
            if value == (self._lengths.get(length) or self._length(length)):
                return _LENGTH
        elif name not in _OWN and len(name) + len(value) <= _LONGEST and self._is_learnt(self._fields, pair):
            return pair
        own.append(value)
        return (name,)

    def _length(self, length: int) -> bytes:
        """As a field has it; remembered."""
        if len(self._lengths) >= _REMEMBERED:
            self._lengths.clear()
        told = self._lengths[length] = b"%d" % length
        return told

    def _beginning(self, name: str) -> str:
        """What other tags begin with too."""
        for cut in dict.fromkeys((name.rfind("/"), name.find("/"), name.rfind(":"))):
            tried, known = name[: cut + 1], self._beginnings
            if tried and (tried in known or (cut <= _LONGEST and self._is_learnt(known, tried))):
                return tried
        return ""

    def _is_learnt(self, known: set[Any], part: Any) -> bool:
        """Whether a part that is not known was seen before; it is known from now on then."""
        if not self._was_seen(hash(part)):
            return False
        if len(known) >= _REMEMBERED:
            known.clear()
        known.add(part)
        return True

    def _was_seen(self, part: int) -> bool:
        """Whether this hash was met before, not long ago."""
        once = self._once
        if part in once:
            return True
        if len(once) >= _ONCE:
            once.clear()
        once.add(part)
        return False

    def _form(self, key: Key, pieces: int) -> Form:
        _, headers, _, _, _, _, _, vary, tags, positions, _ = key
        weight = _FORM + _PAIR * (len(headers) + len(vary) + len(tags) + len(positions))
        weight += sum([len(part or b"") for pair in (*headers, *vary) for part in pair])
        weight += sum([len(part) for parts in tags for part in parts]) + sum([len(scope) for scope, _ in positions])
        form = Form(key, pieces, owner_in(positions), weight)
        if self._was_seen(hash(key)) and self._bytes + weight <= self._most:
            form.shared = True
            self._forms[key] = form
            self._bytes += weight
        if self._numbers:
            form.number = self._numbers.pop()
            self.numbered[form.number] = form
        else:
            form.number = len(self.numbered)
            self.numbered.append(form)
        return form

    def let_go(self, form: Form) -> None:
        """An entry has it no more."""
        form.rows -= 1
        if not form.rows:
            self.forget(form)

    def forget(self, form: Form) -> None:
        """No entry has it any more."""
        self.numbered[form.number] = None
        self._numbers.append(form.number)
        if form.shared:
            form.shared = False
            del self._forms[form.key]
            self._bytes -= form.weight

    def close(self) -> None:
        """No entry has any of them any more."""
        for form in self._forms.values():
            form.shared = False


def released(form: Form, own: bytes, body: bytes, born: float) -> Entry:
    """The entry that was pressed."""
    status, fields, lifetime, stale, on_error, strict, no_cache, vary, parts, positions, own_etag = form.key
    pieces = iter(_pieces(own, form.pieces)).__next__
    tags = tuple([(scope, beginning + _text(pieces())) for scope, beginning in parts])
    if lifetime is None:
        lifetime = _SECONDS.unpack(pieces())[0]
    headers: list[tuple[bytes, bytes]] = []
    for field in fields:
        if len(field) == 2:
            headers.append(field)
        elif field is DIGEST:
            headers.append((b"etag", b'"%b"' % hexlify(pieces())))
        elif field:
            headers.append((field[0], pieces()))
        else:
            headers.append((b"content-length", b"%d" % len(body)))
    others = (
        status, tuple(headers), born, lifetime, stale, on_error, strict, no_cache, vary, tags, positions, own_etag,
    )  # fmt: skip
    return with_body(others, body)


def digest_in(etag: bytes) -> bytes | None:
    """The bits of an ETag that is to be held as a DIGEST."""
    if len(etag) != _DIGITS + 2 or not etag[0] == etag[-1] == _QUOTE:
        return None
    digits = etag[1:-1]
    try:
        bits = unhexlify(digits)
    except ValueError:
        return None
    return bits if hexlify(bits) == digits else None  # capitals are others


def size_of(key: bytes, record: Record) -> int:
    """Bytes of memory that a record under this key takes as it comes, estimated from its parts.

    Pressed it takes less.
    """
    size = _RECORD + len(key)
    if not isinstance(record, Entry):
        return size + sum(len(name) + _PAIR for name in (*record.names, *record.keys))
    pairs = len(record.headers) + len(record.vary) + len(record.tags) + len(record.positions)
    size += len(record.body) + _PAIR * pairs
    for name, value in record.headers:
        size += len(name) + len(value)
    for scope, tag in record.tags:
        size += len(scope) + len(tag)
    for field, wanted in record.vary:
        size += len(field) + len(wanted or b"")
    return size


def owner_in(positions: tuple[tuple[str, int], ...]) -> str:
    """The scope of an entry's own tags: the tenant it is stored for, or the public."""
    for scope, _ in positions:
        if scope != PUBLIC_SCOPE:
            return scope
    return PUBLIC_SCOPE


def _joined(own: list[bytes]) -> bytes:
    """One after the other, with the lengths of all but the last before them."""
    if len(own) < 2:
        return own[0] if own else b""
    lengths = [len(piece) for piece in own[:-1]]
    if max(lengths) < _WIDE:
        return b"".join((bytes(lengths), *own))
    return b"".join((b"\xff", *[length.to_bytes(4, "big") for length in lengths], *own))


def _pieces(own: bytes, count: int) -> list[bytes]:
    """What was joined."""
    if count < 2:
        return [own]
    if count == 2 and own[0] != _WIDE:
        cut = own[0] + 1
        return [own[1:cut], own[cut:]]
    at = count - 1
    lengths = list(own[:at])
    if lengths[0] == _WIDE:
        at = 4 * at + 1
        lengths = [int.from_bytes(own[place : place + 4], "big") for place in range(1, at, 4)]
    pieces: list[bytes] = []
    for length in lengths:
        pieces.append(own[at : at + length])
        at += length
    pieces.append(own[at:])
    return pieces


def _text(end: bytes) -> str:
    return end.decode() if end.isascii() else end.decode("utf-8", "surrogatepass")
