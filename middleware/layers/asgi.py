"""What every layer shares: ASGI types, the request's context under `scope["tidegate"]`, and the gate.

The context is the only thing that Tidegate adds to a scope. The outermost layer makes it, the others find it; each
layer therefore also works alone, on any ASGI app.

Where every request comes past, what an instance holds to be called is given a name first: `self._held()` takes CPython
3.11 some 20 ns longer, for it knows a quick way to the methods of classes only.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol, cast

from tidegate.middleware.core.explain import Explanation, aside
from tidegate.middleware.core.identity import Credentials, Identity, identified
from tidegate.middleware.core.policy import Match, Policies
from tidegate.middleware.layers.identifying import Identify, starlette_user
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
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


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
    purges: where it has none, how many purges this process had asked for when the coalescing layer was asked.
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
    purges: int = 0
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
            identify = self._identify
            found = identify(scope)
            identity = found if found is None or type(found) is Identity else identified(found)
        except Exception as error:  # noqa: BLE001 - P5: the app answers whatever identify() does; counted by on_error
            self._on_error("identify", error)
        decision: Decision | None = None
        try:
            decide_for = self._decide_for
            if decide_for is not None:
                decision = (
                    decide_for(identity.tenant, identity.user) if identity is not None else decide_for(None, None)
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
