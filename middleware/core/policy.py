"""What an application says about its routes: how long, for whom, under which tags a response may be stored.

A policy may add freshness where a response is silent. It never overrules no-store, private (but for share "user"),
Set-Cookie, `Vary: *` or a missing identity; `core.storing` sees to that.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from tidegate.errors import Problems

__all__ = [
    "DEFAULT_MAX_BODY",
    "FIELD_NAME",
    "Authorization",
    "Extensions",
    "Match",
    "Mode",
    "Policies",
    "RoutePolicy",
    "Share",
]

Share = Literal["public", "tenant", "user"]
Mode = Literal["serve", "shadow", "off"]
Authorization = Literal["strict", "rfc9111"]
Extensions = Literal["pass", "hide"]

DEFAULT_MAX_BODY: Final = 1024 * 1024
"""Bytes. Larger responses pass through unstored: one of them would push out hundreds of usual ones."""

_PARAM = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_]+))?}")
_CONVERTERS: Final = {
    "str": "[^/]+",
    "path": ".*",
    "int": "[0-9]+",
    "float": r"[0-9]+(?:\.[0-9]+)?",
    "uuid": "[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}",
}
"""What Starlette's converters match. A path that its router takes and we do not would escape its route's policy."""


def _spelled_uuid(value: str) -> str:
    digits = value.replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


_SAME: Final[Mapping[str, Callable[[str], str]]] = {
    "int": lambda value: value.lstrip("0") or "0",
    "uuid": _spelled_uuid,
}
"""One spelling for what is one value to the app: else a write to /clients/007 would not purge `client:7`."""

_LONGEST_REMEMBERED: Final = 512
"""Characters of a path: what any client may send is not to fill the memory."""

_SECONDS_MAX: Final = 2**31
"""What HTTP can say (RFC 9111 1.2.2)."""
FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
"""A header field's name (RFC 9110 5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """How responses of one route are cached.

    route: path pattern in Starlette's syntax (`/clients/{client_id}`, `{rest:path}`), relative to the mount.
    ttl: seconds that a response is fresh here when it says nothing itself; None: only its own headers count.
    client_ttl: seconds that the client may reuse it; None: clients of tenant and user shares must revalidate.
    stale_while_revalidate, stale_if_error: seconds past `ttl` (RFC 5861) when the response says nothing itself.
    share: who may be served a stored response: everybody, the tenant, or one user of it.
    tags: names an entry depends on; `{param}` is filled in from the path.
    query: parameters that count for the key; None: all of them.
    vary: request fields that count as well, as if the response named them in Vary.
    invalidates: tags that a successful unsafe request to this route purges, before its response starts.
    max_body: bytes; a larger response passes through unstored.
    mode: `serve`, `shadow` (compare, never serve) or `off`.
    extensions: what becomes of the server's extensions whose messages cannot be stored (a file sent by path or by
        descriptor, trailers). `pass`: the app may use them, and what it sends by them is not stored. `hide`: where a
        response may be stored the app is not told of them, and sends bytes instead. Default `pass`: the server sends a
        file without copying it, which a stored copy does not beat.

    Raises:
        ConfigError: with every problem found and its path.
    """

    route: str
    ttl: float | None = None
    client_ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    share: Share = "user"
    tags: tuple[str, ...] = ()
    query: tuple[str, ...] | None = None
    vary: tuple[str, ...] = ()
    invalidates: tuple[str, ...] = ()
    max_body: int = DEFAULT_MAX_BODY
    mode: Mode = "serve"
    extensions: Extensions = "pass"

    def __post_init__(self) -> None:
        problems = Problems(f"policy for {self.route!r}")
        params = self._check_route(problems)
        for name in ("ttl", "client_ttl", "stale_while_revalidate", "stale_if_error"):
            value = getattr(self, name)
            if value is not None and not _is_seconds(value):
                problems.add(name, value, "is not a number of seconds", "give 0 to 2147483648, or leave it out")
        if self.share not in get_args(Share):
            problems.add("share", self.share, "is not a share", "use public, tenant or user")
        if self.mode not in get_args(Mode):
            problems.add("mode", self.mode, "is not a mode", "use serve, shadow or off")
        if self.extensions not in get_args(Extensions):
            problems.add("extensions", self.extensions, "is not known", "use pass or hide")
        max_body: object = self.max_body  # a settings file may hold anything
        if type(max_body) is not int or max_body < 0:
            problems.add("max_body", max_body, "is not a number of bytes", "give a whole number >= 0")
        for name in ("tags", "invalidates", "vary", "query"):
            self._check_names(name, params, problems)
        problems.raise_if_any()

    @property
    def storable(self) -> bool:
        """Whether this policy by itself makes answers to GET and HEAD storable (the hit ratio's denominator)."""
        return self.ttl is not None and self.mode == "serve"

    def _check_route(self, problems: Problems) -> set[str]:
        if not self.route.startswith("/"):
            problems.add("route", self.route, "is not a path", "start it with /")
        seen: set[str] = set()
        for name, converter in _PARAM.findall(self.route):
            if name in seen:
                problems.add("route", self.route, f"names {{{name}}} twice", "give each parameter its own name")
            if converter and converter not in _CONVERTERS:
                problems.add(
                    "route",
                    self.route,
                    f"has the unknown converter {converter!r}",
                    f"use one of {', '.join(_CONVERTERS)}",
                )
            seen.add(name)
        if "{" in _PARAM.sub("", self.route) or "}" in _PARAM.sub("", self.route):
            problems.add("route", self.route, "has a brace that opens no parameter", "write {name} or {name:converter}")
        return seen

    def _check_names(self, name: str, params: set[str], problems: Problems) -> None:
        given: object = getattr(self, name)
        if given is None and name == "query":
            return
        if not isinstance(given, tuple):
            fix = f"write [{given!r}]" if isinstance(given, str) else "give a list of names"
            problems.add(name, given, "is not a list", fix)
            return
        values = cast(tuple[object, ...], given)
        for index, value in enumerate(values):
            path = f"{name}[{index}]"
            if not isinstance(value, str) or not value:
                problems.add(path, value, "is not a name", "give text that is not empty")
            elif name == "vary" and not FIELD_NAME.match(value):
                problems.add(path, value, "is not a header field name", "give one field name without spaces")
            elif name in ("tags", "invalidates"):
                _check_template(path, value, params, problems)


def _check_template(path: str, template: str, params: set[str], problems: Problems) -> None:
    for param, converter in _PARAM.findall(template):
        if param not in params:
            problems.add(
                path,
                template,
                f"uses {{{param}}}, which the route does not have",
                f"use one of {sorted(params)} or none",
            )
        elif converter:
            problems.add(path, template, f"repeats the converter of {{{param}}}", f"write {{{param}}}")
    rest = _PARAM.sub("", template)
    if "{" in rest or "}" in rest:
        problems.add(path, template, "has a brace that opens no parameter", "write {name}, without anything after it")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _SECONDS_MAX


@dataclass(frozen=True, slots=True)
class Match:
    """A path's policy (None: RFC mode), the route label for metrics, and the path parameters.

    storable: whether the policy by itself makes answers to GET and HEAD storable.
    """

    policy: RoutePolicy | None
    route: str
    params: Mapping[str, str]
    storable: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "storable", self.policy is not None and self.policy.storable)


OTHER: Final = Match(None, "other", {})
"""No policy matches: the response's own headers decide."""


class Policies:
    """The policies of one application, compiled into one pattern; the first that matches wins.

    Ends as Starlette's patterns do, before a line feed at the end: its router takes `/me%0A` for `/me`.
    Remembers the last `remember` distinct paths, but long ones: a look-up costs 18 ns instead of 377.
    """

    def __init__(self, policies: Iterable[RoutePolicy] = (), *, remember: int = 4096) -> None:
        self.all: tuple[RoutePolicy, ...] = tuple(policies)
        problems = Problems("policies")
        seen: dict[str, int] = {}
        for index, policy in enumerate(self.all):
            if policy.route in seen:
                problems.add(
                    f"[{index}].route", policy.route, f"is also the route of [{seen[policy.route]}]", "merge the two"
                )
            seen.setdefault(policy.route, index)
        problems.raise_if_any()
        self._names: list[list[tuple[str, Callable[[str], str]]]] = []
        parts: list[str] = []
        for index, policy in enumerate(self.all):
            parts.append(f"(?P<r{index}>{self._compile(index, policy.route)})")
        self._pattern = re.compile("(?:" + "|".join(parts) + ")$") if parts else None
        self._remember = remember
        self.known: dict[str, Match] = {}
        """What is remembered of paths that say by themselves what they match: those that do not end with a slash."""
        self._slashed: dict[str, Match] = {}

    def _compile(self, index: int, route: str) -> str:
        names: list[tuple[str, Callable[[str], str]]] = []
        out: list[str] = []
        at = 0
        for found in _PARAM.finditer(route):
            out.append(re.escape(route[at : found.start()]))
            name, converter = found.group(1), found.group(2) or "str"
            out.append(f"(?P<r{index}_{name}>{_CONVERTERS[converter]})")
            names.append((name, _SAME.get(converter, str)))
            at = found.end()
        out.append(re.escape(route[at:]))
        self._names.append(names)
        return "".join(out)

    def match(self, path: str) -> Match:
        """The policy for a decoded path, relative to the mount."""
        known = self._slashed if len(path) > 1 and path[-1] == "/" else self.known
        match = known.get(path)
        if match is None:
            match = self._match(path)
            if len(path) > _LONGEST_REMEMBERED:
                return match
            if len(self.known) + len(self._slashed) >= self._remember:
                self.known.clear()
                self._slashed.clear()
            known[path] = match
        return match

    def _match(self, path: str) -> Match:
        found = self._pattern.match(path) if self._pattern is not None else None
        if found is None:
            return OTHER
        for index, policy in enumerate(self.all):
            if found.group(f"r{index}") is not None:
                params = {name: same(found.group(f"r{index}_{name}")) for name, same in self._names[index]}
                return Match(policy, policy.route, params)
        return OTHER
