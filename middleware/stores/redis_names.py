"""What keys are called in Redis: nothing of a tenant can be read in them.

Scopes and tags are named by keyed BLAKE2b. What stands in braces decides the slot of a key in a cluster: all keys of a
scope lie in one, and so do the two of a large record.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeVar, cast

from tidegate.middleware.core.records import WHOLE_SCOPE

__all__ = ["Names"]

REMEMBERED: Final = 16_384

LONGEST: Final = 256
"""Characters of a scope and a tag whose name is remembered: both are as long as an app makes them."""

Named = TypeVar("Named", bound=Callable[..., bytes])


def _remembered(named: Named) -> Named:
    """The same, with the last names kept: hashing costs more than looking up, and few are asked for often."""
    kept = lru_cache(REMEMBERED)(named)

    def name(*of: str) -> bytes:
        return kept(*of) if sum(map(len, of)) <= LONGEST else named(*of)

    return cast(Named, name)


class Names:
    """The names of one namespace."""

    def __init__(self, namespace: str, naming_key: bytes) -> None:
        self._prefix = namespace.encode()
        self._naming_key = naming_key
        self.records = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self._prefix) + b":e:*"
        """The pattern of the names of all records."""
        self.stamps = self._prefix + b":g:"
        """What the names of all stamps begin with."""
        self.stream = self._prefix + b":p"
        """Where purges stand for those who cannot follow the stamps."""
        self.here = self._prefix + b":h"
        """What tells that a database was not emptied since it was written."""
        self.namings = self._prefix + b":n"
        """Where the marks of naming keys stand: see `redis_naming`."""
        self._scope = _remembered(self._hash_scope)
        self.position = _remembered(self._position)
        self.floor = _remembered(self._floor)
        self.stamp = _remembered(self._stamp)

    @property
    def naming(self) -> bytes:
        """The mark of this naming key, which tells nothing of it."""
        return self._hash(b"naming", b"")

    def record(self, key: bytes) -> bytes:
        """Where a record lies, or the token of a large one."""
        return b"%b:e:%b" % (self._prefix, key.hex().encode())

    def body(self, record: bytes) -> bytes:
        """Where a large record lies, by the name under which its token does."""
        return b"%b:b:{%b}" % (self._prefix, record)

    def index(self, scope: str) -> bytes:
        """Where the scope's stamped tags lie by stamp."""
        return self._of(b"i", self._scope(scope))

    def mark(self, scope: str) -> bytes:
        """What is written after a purge, to wait for a replica to have it."""
        return self._of(b"w", self._scope(scope))

    def _floor(self, scope: str) -> bytes:
        """Where the highest stamp lies that the scope let go."""
        return self._of(b"f", self._scope(scope))

    def _position(self, scope: str) -> bytes:
        """Where the scope's position lies."""
        return self._of(b"s", self._scope(scope))

    def _stamp(self, scope: str, tag: str) -> bytes:
        """Where a tag's stamp lies, or that of the whole scope if the tag is WHOLE_SCOPE."""
        name = self._scope(scope)
        # With its scope, so that nobody can see two tenants use the same tag.
        told = b"*" if tag == WHOLE_SCOPE else self._hash(b"tag", name + tag.encode("utf-8", "surrogatepass"))
        return b"%b:%b" % (self._of(b"g", name), told)

    def _of(self, kind: bytes, scope: bytes) -> bytes:
        return b"%b:%b:{%b}" % (self._prefix, kind, scope)

    def _hash_scope(self, scope: str) -> bytes:
        return self._hash(b"scope", scope.encode("utf-8", "surrogatepass"))

    def _hash(self, kind: bytes, name: bytes) -> bytes:
        return blake2b(name, digest_size=16, key=self._naming_key, person=kind).hexdigest().encode()
