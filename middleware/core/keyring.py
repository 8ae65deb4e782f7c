"""The keys that records are sealed with: how they are written, which of them seals, and which only open.

A ring is a list of items, one of them a line of a key file or a member of `store.keys`:

    tgn1_<secret>_<check>                        the naming key: at most one
    tgk1_<secret>_<check>                        a sealing key, from the beginning
    2026-11-29T03:00:00Z tgk1_<secret>_<check>   a sealing key that seals from then on

Of the sealing keys whose time has come the latest seals; all of them open. So a new key is given out with a time when
every process will have read it, and no process ever meets a record that it cannot open. The check catches a key that
was cut or mistyped; a sealing key's is its id, which stands in every record that it sealed.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final, Literal

from tidegate.errors import ABSENT, Problems

__all__ = ["ID_BYTES", "SECRET_BYTES", "KeyRing", "SealingKey", "key_id", "written"]

SECRET_BYTES: Final = 32
ID_BYTES: Final = 4

Kind = Literal["tgk1", "tgn1"]

_ITEM: Final = re.compile(
    r"(?:(?P<since>\S+)\s+)?(?P<kind>tg[kn]1)_(?P<secret>[A-Za-z0-9_-]{43})_(?P<check>[0-9a-f]{8})"
)
_FIX: Final = (
    "take it as `tidegate keys new` writes it: tgk1_<43 letters>_<8 hex digits>, with or without a time before it"
)


@dataclass(frozen=True, slots=True)
class SealingKey:
    """secret: 32 bytes. since: wall-clock seconds from which it seals; it opens always."""

    secret: bytes = field(repr=False)
    since: float = 0.0

    @property
    def id(self) -> bytes:
        """What names it in a record: 4 bytes that tell nothing of the secret."""
        return key_id("tgk1", self.secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """keys: in the order that they were given. naming_key: hashes the names of tenants and tags; empty: none."""

    keys: tuple[SealingKey, ...]
    naming_key: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, items: Iterable[str], problems: Problems, *, named: str = "[{}]", first: int = 0) -> "KeyRing":
        """The ring of these items. Empty ones and comments (`#`) do not count; no problem shows a secret.

        problems: takes each that cannot be used; then the ring is not to be. named: how an item is named by its number
            there; first: the number of the first.
        """
        keys: list[SealingKey] = []
        naming: list[bytes] = []
        for number, item in enumerate(items, first):
            text, path = item.strip(), named.format(number)
            if not text or text.startswith("#"):
                continue
            found = _ITEM.fullmatch(text)
            secret = _secret(found["secret"]) if found is not None else None
            if found is None or secret is None or key_id(_kind(found["kind"]), secret).hex() != found["check"]:
                problems.add(path, "***", "is no key, or not the whole of one", _FIX)
            elif found["kind"] == "tgn1":
                naming.append(secret)
                if found["since"] is not None:
                    problems.add(path, "***", "gives the naming key a time", "write it without: names never change")
            else:
                since = 0.0 if found["since"] is None else _seconds(found["since"])
                if since is None:
                    problems.add(path, found["since"], "is no time", "write it as 2026-11-29T03:00:00Z")
                    continue
                keys.append(SealingKey(secret, since))
        if len({key.id for key in keys}) < len(keys):
            problems.add("keys", "***", "name one key twice", "leave one of them")
        if len(naming) > 1:
            problems.add("keys", "***", "have two naming keys", "keep the one that all processes have")
        if not keys:
            problems.add("keys", ABSENT, "have no sealing key", "make one: tidegate keys new")
        return cls(keys=tuple(keys), naming_key=naming[0] if naming else b"")

    def sealing(self, now: float) -> SealingKey:
        """The key that seals now: the latest whose time has come, of equal ones the first; if none has, the earliest.

        now: wall-clock seconds.
        """
        started = [key for key in self.keys if key.since <= now]
        if not started:
            return min(self.keys, key=lambda key: key.since)
        return max(started, key=lambda key: key.since)  # the first of equals


def key_id(kind: Kind, secret: bytes) -> bytes:
    """What may be shown of a key."""
    return blake2b(secret, digest_size=ID_BYTES, person=kind.encode()).digest()


def written(kind: Kind, secret: bytes, since: float | None = None) -> str:
    """The item of a key, as KeyRing.of reads it. since: to the second."""
    time = "" if since is None else f"{datetime.fromtimestamp(since, UTC):%Y-%m-%dT%H:%M:%SZ} "
    text = urlsafe_b64encode(secret).decode().rstrip("=")
    return f"{time}{kind}_{text}_{key_id(kind, secret).hex()}"


def _kind(text: str) -> Kind:
    return "tgn1" if text == "tgn1" else "tgk1"


def _secret(text: str) -> bytes | None:
    try:
        return urlsafe_b64decode(text + "=")
    except (Base64Error, ValueError):
        return None


def _seconds(text: str) -> float | None:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read.timestamp() if read.tzinfo is not None else None
