"""What every layer shares: ASGI types, the request's context under `scope["tidegate"]`, and the gate.

The context is the only thing that Tidegate adds to a scope. The outermost layer makes it, the others find it; each
layer therefore also works alone, on any ASGI app.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, Protocol, cast
from uuid import UUID

from tidegate.errors import Problems
from tidegate.middleware.core.explain import Explanation, aside
from tidegate.middleware.core.identity import Credentials, Identity, identified
from tidegate.middleware.core.policy import FIELD_NAME, Match, Policies
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.tracing import Tracer

__all__ = [
    "ASGIApp",
    "ContextResolver",
    "Decision",
    "Explainer",
    "FlagGate",
    "Gate",
    "Identify",
    "Message",
    "Receive",
    "RequestContext",
    "Scope",
    "Send",
    "always",
    "has_client_certificate",
    "repeatable",
    "route_label",
    "starlette_user",
    "trusted_headers",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Identify = Callable[[Scope], Identity | None]
"""Says who asks, from the scope; None when nobody is known. Called once a request, below authentication."""


class Decision(Protocol):
    """What the flags decided for one request: made once, before any layer looks."""

    @property
    def open(self) -> frozenset[str]:
        """The layers whose gate is open."""
        ...

    @property
    def cohorts(self) -> tuple[tuple[str, str, str], ...]:
        """For every flag: (flag, band, cohort), the labels of its cohort counters."""
        ...

    @property
    def shadow(self) -> frozenset[str]:
        """Of the open layers, those that are to compare and not to act."""
        ...


class _Shut:
    """The decision where deciding failed: nothing is open, and nobody is counted in a cohort."""

    open: frozenset[str] = frozenset()
    cohorts: tuple[tuple[str, str, str], ...] = ()
    shadow: frozenset[str] = frozenset()


_SHUT: Final = _Shut()


class Explainer(Protocol):
    """Whoever can say what becomes of the request that is under way."""

    def explain(self) -> Explanation: ...


class RequestContext:
    """What Tidegate knows about one request. Handlers may use it: `scope["tidegate"].tag("client:42")`.

    identity, match, decision: who asks, the route's policy, what is open; settled before the first layer acts.
    storable: policy, or the response itself, made this request's response storable (bypasses included).
    outcome: what the cache did: hit, miss, stale, shadow, bypass; None where the cache is shut or absent.
    reason: why, in a word (`no-identity`, `credential`, `method`, ...).
    own_etag: the ETag on the response was made by the etag layer.
    tags: further tags for the entry, from the handler.
    waited: seconds that the request has waited for the store so far (P5: it has one budget for all its look-ups).
    coalesce_key: the cache's key, where a policy or a stored Vary says which parts of the request count.
    positions: the ledger positions that the cache read before the app was asked; None where it has none.
    collapsed: the response is that of another request's run (RFC 9211 `collapsed`), which also stores it.
    tracer: set where the telemetry layer is open and an OpenTelemetry SDK is there.
    explainer: set while the app answers a request that may use the cache, or an unsafe one.
    missed: what the cache knows of a plain request for which it has nothing; for the cache alone.
    """

    # Defaults of the class: most requests never set most of these, and each one would cost every request.
    storable: bool = False
    outcome: str | None = None
    reason: str | None = None
    own_etag: bool = False
    tags: list[str] | None = None
    waited: float = 0.0
    coalesce_key: bytes | None = None
    positions: Mapping[str, int] | None = None
    collapsed: bool = False
    tracer: Tracer | None = None
    explainer: Explainer | None = None
    missed: object = None

    def __init__(self, identity: Identity | None, match: Match, decision: Decision | None) -> None:
        self.identity = identity
        self.match = match
        self.decision = decision

    def is_open(self, layer: str) -> bool:
        """Whether another layer is open for this request; layers without flags always are."""
        return self.decision is None or layer in self.decision.open

    def explain(self) -> Explanation:
        """What the cache does with this request, and why, as far as it is known now; see `docs/explain.md`.

        In a handler: the request's side. Once the response has begun (in a background task, say): both.
        """
        if self.explainer is not None:
            return self.explainer.explain()
        return aside(self.identity, self.match, self.decision, self.outcome, self.reason)

    def tag(self, *names: str) -> None:
        """Add tags to the entry that this response may become."""
        if self.tags is None:
            self.tags = []
        self.tags.extend(names)


Gate = Callable[[RequestContext], bool]
"""Whether a layer is open for a request."""


def always(_context: RequestContext) -> bool:
    """The gate of a layer that is mounted without flags."""
    return True


class FlagGate:
    """Open where the flags open this layer. What every request meets asks the decision itself, and saves the call."""

    __slots__ = ("layer",)

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(self, context: RequestContext) -> bool:
        return context.decision is None or self.layer in context.decision.open


def starlette_user(scope: Scope) -> Identity | None:
    """Reads `scope["user"]` as Starlette's AuthenticationMiddleware leaves it.

    The user needs the attributes `tenant` and, for user shares, `username` or `identity`; `grants` is used if it is
    there.
    A user that is not authenticated, or names no tenant, is nobody.

    Raises:
        TypeError: if one of them is neither text nor a number nor a UUID (an ORM's object, say), nor, for `grants`, a
            collection of such. A resolver counts that and takes the user for nobody.
    """
    user = scope.get("user")
    if user is None:
        return None
    try:
        tenant = user.tenant if user.is_authenticated else None
    except AttributeError:
        return None
    if not tenant:
        return None
    name = getattr(user, "username", None)
    if name is None:
        try:
            name = user.identity
        except (AttributeError, NotImplementedError):  # Starlette's BaseUser raises the second
            name = None
    grants = getattr(user, "grants", "")
    # Only then what is equal has the same text, which is what an identity is made of.
    if not (type(tenant) is str and type(name) is str and type(grants) is str):
        return Identity(_named("tenant", tenant), _named("username", name) if name else None, _granted(grants))
    return _identities.get((tenant, name, grants)) or _identity(tenant, name, grants)


def _identity(tenant: str, user: str, grants: str) -> Identity:
    """Make an identity, and remember it. user: "" is none."""
    made = Identity(tenant, user or None, grants)
    if len(tenant) + len(user) + len(grants) <= _LONGEST:
        if len(_identities) >= _IDENTITIES:
            _identities.clear()
        _identities[tenant, user, grants] = made
    return made


_IDENTITIES: Final = 4096
"""Identities remembered by what names them, some 0.3 KiB each: to make one costs more than to find a response."""

_LONGEST: Final = 512
"""Characters or bytes of what names an identity that is remembered: a client may choose some of it."""

_identities: dict[tuple[str, str, str], Identity] = {}


def _named(attribute: str, value: object) -> str:
    if isinstance(value, str | int | UUID):
        return str(value)
    raise TypeError(f"user.{attribute}: {type(value).__name__} has no text of its own; give its id")


def _granted(grants: object) -> str:
    if grants is None:
        return ""
    if isinstance(grants, list | tuple | set | frozenset):
        members = [_named("grants", member) for member in cast(Iterable[object], grants)]
        return "".join(f"{len(member)}:{member}" for member in sorted(members))
    return _named("grants", grants)


def trusted_headers(*, tenant: str, user: str | None = None, grants: str | None = None) -> Identify:
    """Reads the identity from request headers.

    Only behind a proxy that authenticates and *overwrites* these headers: whoever can send them can be anybody.
    A header that is missing, empty or sent twice names nobody.

    Raises:
        ConfigError: for a name that no header can have.
    """
    problems = Problems("trusted_headers")
    for role, name in (("tenant", tenant), ("user", user), ("grants", grants)):
        if name is not None and not FIELD_NAME.match(name):
            problems.add(role, name, "is not a header field name", "give one field name without spaces")
    problems.raise_if_any()
    fields = [None if name is None else name.lower().encode("latin-1") for name in (tenant, user, grants)]
    return _by_fields(fields[0], fields[1], fields[2])


def _by_fields(tenant: bytes | None, user: bytes | None, grants: bytes | None) -> Identify:
    """As `trusted_headers`, from lower-case names. One name in two places stands in the last."""
    names = {name for name in (tenant, user, grants) if name is not None}
    known: dict[tuple[bytes | None, bytes | None, bytes | None], Identity] = {}

    def identify(scope: Scope) -> Identity | None:
        # Known by the values alone: what is looked for among thousands is found the sooner the less there is of it.
        its_tenant: bytes | None = None
        its_user: bytes | None = None
        its_grants: bytes | None = None
        before: bytes | None
        for name, value in scope["headers"]:
            if name in names:
                if name == grants:
                    before, its_grants = its_grants, value
                elif name == user:
                    before, its_user = its_user, value
                else:
                    before, its_tenant = its_tenant, value
                if before is not None:
                    return None
        sent = (its_tenant, its_user, its_grants)
        found = known.get(sent)
        if found is None:
            found = _named_by(*sent)
            if found is not None and sum([len(value) for value in sent if value is not None]) <= _LONGEST:
                if len(known) >= _IDENTITIES:
                    known.clear()
                known[sent] = found
        return found

    return identify


def _named_by(tenant: bytes | None, user: bytes | None, grants: bytes | None) -> Identity | None:
    """Whom the values of header fields name; None: a field that was not sent."""
    texts = ["" if value is None else value.strip(b" \t").decode("latin-1") for value in (tenant, user, grants)]
    return Identity(texts[0], texts[1] or None, texts[2]) if texts[0] else None


_blank: Final = object.__new__


class ContextResolver:
    """Makes a request's context, or finds the one that a layer further out has made.

    identify: who asks. An error in it counts as nobody (`on_error` hears of it; by default it is counted and logged):
        the request is served, and not stored.
    policies: what the application says about its routes.
    decide: what is open, from the identity and scope; None: no flags, every layer's own gate says. An error in it shuts
        every layer for the request.
    decide_for: the same from tenant and user alone, asked instead; None for who is not known. Quicker by a call.
    """

    def __init__(
        self,
        *,
        identify: Identify = starlette_user,
        policies: Policies | None = None,
        credentials: Credentials | None = None,
        decide: Callable[[Identity | None, Scope], Decision] | None = None,
        decide_for: Callable[[str | None, str | None], Decision] | None = None,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.policies = policies if policies is not None else Policies()
        self.credentials = credentials if credentials is not None else Credentials()
        self._match, self._known = self.policies.match, self.policies.known
        self._identify = identify
        self._decide = decide
        self._decide_for = decide_for
        self._on_error = on_error if on_error is not None else Metrics.of().fail

    def as_if(self, scope: Scope, identity: Identity) -> RequestContext:
        """The context that the request would have if this identity asked; for explanations. It is not kept."""
        decision = self._decide(identity, scope) if self._decide is not None else None
        if self._decide_for is not None:
            decision = self._decide_for(identity.tenant, identity.user)
        return RequestContext(identity, self.policies.match(route_path(scope)), decision)

    def of(self, scope: Scope) -> RequestContext:
        """The context of an HTTP scope; made and kept under `scope["tidegate"]` if this is the first layer."""
        if "tidegate" in scope and (found := scope["tidegate"]) is not None:
            return cast(RequestContext, found)
        fields = scope["headers"]
        if type(fields) is not list and not isinstance(fields, tuple):  # the first says it in a third of the time
            # ASGI allows any iterable: one that can be read once would hide a cookie from all but its first reader.
            scope["headers"] = list(fields)
        identity: Identity | None = None
        try:
            found = self._identify(scope)
            identity = found if found is None or type(found) is Identity else identified(found)
        except Exception as error:  # noqa: BLE001 - P5: the app answers whatever identify() does; counted by on_error
            self._on_error("identify", error)
        decision: Decision | None = None
        try:
            if self._decide_for is not None:
                decision = (
                    self._decide_for(identity.tenant, identity.user)
                    if identity is not None
                    else self._decide_for(None, None)
                )
            elif self._decide is not None:
                decision = self._decide(identity, scope)
        except Exception as error:  # noqa: BLE001 - P5, as above
            self._on_error("flags", error)
            decision = _SHUT
        path: str = scope["path"]
        try:
            mounted = scope["root_path"]
        except KeyError:  # a server may leave it out; most do not, and `get` takes twice as long
            mounted = None
        match = self._known.get(path)
        if match is None or mounted:
            match = self._match(route_path(scope))
        context = scope["tidegate"] = _blank(RequestContext)  # its `__init__` takes as long as all the rest of it
        context.identity = identity
        context.match = match
        context.decision = decision
        context.tracer = None  # the one default that most requests read: from the class it takes three times as long
        return context


def has_client_certificate(scope: Scope) -> bool:
    """Whether the client showed a certificate (ASGI's TLS extension), which nothing in the request's head tells."""
    extensions = cast(Mapping[str, Any], scope.get("extensions") or {})
    return bool(cast(Mapping[str, Any], extensions.get("tls") or {}).get("client_cert_chain"))


def repeatable(start: Message) -> Message:
    """A response's start whose headers can be read more than once: ASGI allows any iterable."""
    headers = start.get("headers", ())
    return start if isinstance(headers, list | tuple) else {**start, "headers": list(headers)}


def route_label(scope: Scope, context: RequestContext) -> str:
    """The policy's route, else the template that the framework left in the scope, else `other`; never a raw path."""
    if context.match.policy is not None:
        return context.match.route
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else "other"


def route_path(scope: Scope) -> str:
    """The decoded path relative to the mount, as Starlette's router sees it."""
    path: str = scope["path"]
    root: str | None = scope.get("root_path")
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        path = path[len(root) :]
    if path.endswith("/") and len(path) > 1:
        raw: bytes = scope.get("raw_path") or b"/"
        if not raw.partition(b"?")[0].endswith((b"/", b"%2F", b"%2f")):
            return path[:-1]  # Litestar's mounts put one there
    return path
