"""Says once, when the application starts, which other middleware stands where it cannot work together with ours.

Seen are, inside: what we wrap, through its attributes `app`, and the middleware list of a Starlette application (so of
FastAPI) in there; outside: the list of the Starlette application that we are in, as middleware or in a mount. Not seen
are plain wrappers round everything, and what other frameworks keep elsewhere: no warning is no proof.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, Literal, cast, get_args

from tidegate.vocabulary import LAYERS, Layer

__all__ = ["RULES", "Place", "Rule", "inside_of", "misplaced", "outside_of", "warn_of_order"]

_log = logging.getLogger("tidegate")

Place = Literal["outside", "inside"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)
Names = tuple[str, ...]
"""A middleware: the full names of its class and of all that it is derived from."""

_DEEPEST: Final = 100
"""Wrappers looked through; an object that makes up its attributes has no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An order that cannot work.

    kind: pattern of a class's name. place: where it stands, seen from Tidegate. layers: it matters where one of these
    is mounted. identity: it matters only where who asks is read from what authentication leaves in the scope.
    harm, fix: ends of the warning's sentences.
    """

    kind: re.Pattern[str]
    place: Place
    layers: frozenset[Layer]
    identity: bool = False
    harm: str
    fix: str


RULES: Final = (
    Rule(
        kind=re.compile(r"(?:^|\.)\w*(?:Gzip|GZip|Brotli|Zstd|Compress|Compression)Middleware$"),
        place="outside",
        layers=frozenset({"cache", "etag"}),
        harm="one strong ETag then names the plain and the compressed bytes (RFC 9110 8.8.3), and a client that resumes"
        " a download joins parts of both",
        fix="put it inside: tide(GZipMiddleware(app)), or add_middleware for it before the one for Tidegate",
    ),
    Rule(
        kind=re.compile(r"(?:^|\.)\w*Auth(?:entication|n)?Middleware$"),
        place="inside",
        layers=frozenset({"cache"}),
        identity=True,
        harm="nobody is known where the cache decides, so that only public responses are stored (the others count as"
        ' tidegate_cache_bypass_total{reason="no-identity"}), and flags are drawn over nobody',
        fix="put it outside: add_middleware for it after the one for Tidegate; or give Tidegate an identify of its own",
    ),
    Rule(
        kind=re.compile(r"(?:^|\.)\w*ProxyHeadersMiddleware$"),
        place="inside",
        layers=frozenset({"cache"}),
        harm="the cache's key has the scheme of the connection to the proxy, so that a write's Location with https"
        " names another site, and what is stored for it is not purged (RFC 9111 4.4)",
        fix="put it outside of everything, or leave it to the server: uvicorn --proxy-headers",
    ),
    *(
        Rule(
            kind=re.compile(r"^tidegate\.(?:runtime\.Mounted|assembly\.Tidegate(?:Middleware)?)$"),
            place=place,
            layers=frozenset(LAYERS),
            harm="the inner one takes over what the outer one decided about identity, policy and flags, and both count",
            fix="mount it once",
        )
        for place in PLACES
    ),
)


def misplaced(found: Mapping[Place, Sequence[Names]], *, layers: Iterable[Layer], needs_identity: bool) -> list[str]:
    """One warning for each rule, about the outermost middleware that breaks it.

    found: the middleware on each side. layers: those that Tidegate mounts. needs_identity: who asks is read from the
    scope, and it matters.
    """
    mounted = frozenset(layers)
    warnings: list[str] = []
    for rule in RULES:
        if not rule.layers & mounted or (rule.identity and not needs_identity):
            continue
        for names in found.get(rule.place, ()):
            if any(rule.kind.search(name) for name in names):
                short = names[0].rpartition(".")[2]
                warnings.append(f"{short} is {rule.place} of Tidegate: {rule.harm}; {rule.fix}")
                break
    return warnings


def inside_of(app: object) -> Iterator[Names]:
    """The middleware that we wrap, the outermost first."""
    for _ in range(_DEEPEST):
        if app is None:
            return
        yield _names(app)
        listed = _middleware_list(app)
        if listed is not None:
            for entry in listed:
                yield _names(_own(entry).get("cls", entry))
            return
        app = _own(app).get("app")


def outside_of(scope: Mapping[str, Any]) -> Iterator[Names]:
    """The middleware of the Starlette application that calls us, the outermost first, as far as it is outside of us."""
    if "tidegate" in scope:
        yield ("tidegate.assembly.Tidegate",)
    for entry in _middleware_list(scope.get("app")) or ():
        names = _names(_own(entry).get("cls", entry))
        if names[0].startswith("tidegate."):
            return
        yield names


def warn_of_order(
    scope: Mapping[str, Any], *, app: object, layers: Iterable[Layer], needs_identity: bool, said: set[str]
) -> None:
    """Log a warning for each middleware that stands where it cannot work.

    app: what we wrap. said: the warnings so far; some frameworks mount one middleware many times.
    """
    found: dict[Place, Sequence[Names]] = {"outside": tuple(outside_of(scope)), "inside": tuple(inside_of(app))}
    for warning in misplaced(found, layers=layers, needs_identity=needs_identity):
        if warning not in said:
            said.add(warning)
            _log.warning("order of middleware: %s", warning)


def _middleware_list(app: object) -> Sequence[object] | None:
    """What Starlette's add_middleware fills; None where the application keeps no such list."""
    listed = _own(app).get("user_middleware")
    return cast(Sequence[object], listed) if isinstance(listed, list | tuple) else None


def _own(thing: object) -> Mapping[str, object]:
    """Its own attributes, without running any code of it."""
    try:
        return cast(Mapping[str, object], object.__getattribute__(thing, "__dict__"))
    except AttributeError:
        return {}  # it has slots, or none


def _names(thing: object) -> Names:
    """The full names of a class, of an object's class, or of a function that makes middleware."""
    if isinstance(thing, FunctionType):
        return (f"{thing.__module__}.{thing.__qualname__}",)
    made = thing if isinstance(thing, type) else type(thing)
    return tuple(f"{each.__module__}.{each.__qualname__}" for each in made.__mro__)
