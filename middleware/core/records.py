"""What goes into a store: records, and the names that they hang on. Plain values."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from sys import getsizeof
from typing import Any, Final, cast

__all__ = [
    "BUT_BODY",
    "PUBLIC_SCOPE",
    "WHOLE_SCOPE",
    "Aim",
    "Entry",
    "Headers",
    "Record",
    "ScopedTag",
    "Target",
    "Variants",
    "aimed",
    "bytes_of",
    "new_entry",
    "with_body",
]

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields in order, names in lower case, duplicates kept."""

ScopedTag = tuple[str, str]
"""(scope, tag): a tag's name within its scope."""

PUBLIC_SCOPE = "public"
"""The scope of tags that belong to nobody, among them every entry's own URI. Tenants' scopes are `tenant:<id>`."""

WHOLE_SCOPE: Final = ""
"""As a tag in `purge`: everything that was filled with a position of the scope. No tag has the empty name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stored response (RFC 9111 section 2) and what is needed to decide whether it may be used.

    born: wall-clock seconds at which the response had age 0 (response time less its corrected initial age).
    lifetime: freshness lifetime in seconds from `born`.
    stale_while_revalidate, stale_if_error: seconds past `lifetime` (RFC 5861); 0 where forbidden.
    vary: the request fields that selected this response, with the values they had (None: absent).
    tags, positions: what it depends on, and each scope's ledger position read before the app was asked.
    own_etag: the ETag among `headers` was made by the etag layer, not by the app.
    must_revalidate: never to be served stale (must-revalidate, proxy-revalidate, s-maxage; RFC 9111 5.2.2).
    no_cache: to be validated before every use.
    """

    status: int
    headers: Headers
    body: bytes
    born: float
    lifetime: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    must_revalidate: bool = False
    no_cache: bool = False
    vary: tuple[tuple[bytes, bytes | None], ...] = ()
    tags: tuple[ScopedTag, ...] = ()
    positions: tuple[tuple[str, int], ...] = ()
    own_etag: bool = False


class _Draft:
    """An entry that is not frozen yet: the same slots."""

    __slots__ = Entry.__slots__


def new_entry(
    *,
    status: int,
    headers: Headers,
    body: bytes,
    born: float,
    lifetime: float,
    stale_while_revalidate: float = 0.0,
    stale_if_error: float = 0.0,
    must_revalidate: bool = False,
    no_cache: bool = False,
    vary: tuple[tuple[bytes, bytes | None], ...] = (),
    tags: tuple[ScopedTag, ...] = (),
    positions: tuple[tuple[str, int], ...] = (),
    own_etag: bool = False,
) -> Entry:
    """`Entry(…)` in a fifth of its time, for every miss makes one: a frozen dataclass sets each field by a call of its
    own. This one is frozen when all are set."""
    draft: Any = _Draft()
    draft.status = status
    draft.headers = headers
    draft.body = body
    draft.born = born
    draft.lifetime = lifetime
    draft.stale_while_revalidate = stale_while_revalidate
    draft.stale_if_error = stale_if_error
    draft.must_revalidate = must_revalidate
    draft.no_cache = no_cache
    draft.vary = vary
    draft.tags = tags
    draft.positions = positions
    draft.own_etag = own_etag
    draft.__class__ = Entry
    return cast(Entry, draft)


BUT_BODY: Final = tuple(field.name for field in fields(Entry) if field.name != "body")


def with_body(others: tuple[Any, ...], body: bytes) -> Entry:
    """The entry with this body, and these values of its other fields in the order of BUT_BODY: in a quarter of the time
    of `new_entry`, for every hit in a shared store makes one."""
    draft: Any = _Draft()
    (
        draft.status,
        draft.headers,
        draft.born,
        draft.lifetime,
        draft.stale_while_revalidate,
        draft.stale_if_error,
        draft.must_revalidate,
        draft.no_cache,
        draft.vary,
        draft.tags,
        draft.positions,
        draft.own_etag,
    ) = others
    draft.body = body
    draft.__class__ = Entry
    return cast(Entry, draft)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """Stands under a URL's primary key where its responses vary: the request field names that a key must add.

    keys: of the variants that were stored, the latest last; those that it does not name are there but not counted.
    scope: of the variants' own tags: the tenant that they are stored for, or the public.
    """

    names: tuple[bytes, ...]
    keys: tuple[bytes, ...] = ()
    scope: str = PUBLIC_SCOPE


Record = Entry | Variants


@dataclass(frozen=True, slots=True)
class Aim:
    """What a purge is aimed at, where that is more than to void what carries one tag.

    tags: what carries all of these, at most MAX_AIMED; WHOLE_SCOPE alone: all of the scope. In one order, so that the
        same aim is equal.
    soft: it becomes stale, not void (`core.softening`).

    Raises:
        ValueError: if there are no tags, too many, or WHOLE_SCOPE among others.
    """

    tags: tuple[str, ...]
    soft: bool = False

    def __post_init__(self) -> None:
        tags = tuple(sorted(set(self.tags)))
        if not 0 < len(tags) <= MAX_AIMED or (WHOLE_SCOPE in tags and len(tags) > 1):
            raise ValueError(f"1 to {MAX_AIMED} tags belong to an aim, none of them empty")
        object.__setattr__(self, "tags", tags)

    def hits(self, scope: str, entry: Entry) -> bool:
        """Whether the entry carries all of the tags, in this scope."""
        if self.tags == (WHOLE_SCOPE,):
            return any(scope == held for held, _ in entry.positions)
        return all((scope, tag) in entry.tags for tag in self.tags)


MAX_AIMED: Final = 16
"""Tags of one aim."""

Target = str | Aim
"""What a purge is aimed at; a tag alone: what carries it becomes void."""


def bytes_of(scope: str, target: Target) -> int:
    """What the names of a purge's target take in memory: they are as long as an app, or a URL, makes them."""
    tags = target.tags if isinstance(target, Aim) else (target,)
    return getsizeof(scope) + sum(map(getsizeof, tags))


def aimed(tags: Iterable[str] = (), *, all_of: Iterable[str] = (), soft: bool = False) -> tuple[Target, ...]:
    """The targets of one purge: what carries any of `tags`, and what carries all of `all_of`.

    Raises:
        ValueError: if that is nothing, or `all_of` is no aim.
        TypeError: if one of them is no text: a list of tags instead of some, or a number that no response carries.
    """
    if isinstance(all_of, str):
        raise TypeError(f"purge: all_of={all_of!r} is one text; give a list of tags: all_of=[{all_of!r}]")
    tags, all_of = tuple(tags), tuple(all_of)
    for tag in (*tags, *all_of):
        if not isinstance(tag, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"purge: {tag!r} is no tag; give its name as str, several one after the other")
    together = tuple(dict.fromkeys(all_of))
    targets: list[Target] = [Aim((tag,), soft=True) if soft else tag for tag in tags]
    if len(together) == 1 and not soft:
        targets += together
    elif together:
        targets.append(Aim(together, soft=soft))
    if not targets:
        raise ValueError("nothing is named to purge; give tags or all_of, or use purge_all for everything")
    return tuple(targets)
