"""A request's dealings with the store, told to a person: `scope["tidegate"].explain()` and `CacheLayer.explain`.

Costs the request path one reference on a miss, and nothing else unless it is asked. What is told is read from the
very objects that serve the request; the verdicts are made by the functions that the request path asks.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry

from tidegate.middleware.core.explain import (
    Explanation,
    Step,
    layers_of,
    request_step,
    response_steps,
    reuse_step,
    stored_of,
)
from tidegate.middleware.core.explain_key import key_of, shown_url
from tidegate.middleware.core.identity import Credentials
from tidegate.middleware.core.reuse import Reuse, is_refused, judge_reuse
from tidegate.middleware.core.storing import Bypass, Kept, Refused, Usable
from tidegate.middleware.core.targeted import control_of
from tidegate.middleware.layers.asgi import Message, RequestContext, Scope
from tidegate.middleware.layers.filling import MAX_HEADER_BYTES, MAX_TAGS, CacheConfig, Filling
from tidegate.middleware.layers.naming import Uri
from tidegate.middleware.layers.refresh import Refreshes
from tidegate.middleware.metrics import Metrics
from tidegate.middleware.stores.base import Entry, Lookup, Purge, Record, ScopedTag, Store, StoreStats, Target

__all__ = ["Collected", "Explained", "KeepsNothing", "NoRefreshes", "Unsafe", "explain_request", "without_effect"]

_NO_POSITIONS: Final = Step(
    about="stored response",
    found="nothing can be stored",
    because="the store did not answer in time, so nobody knows what was purged meanwhile",
    source="P4, P5",
)


class Explained(Filling):
    """A request that may use the cache, and can say what came of it so far."""

    _in_part: tuple[Entry, Reuse, bytes] | None = None
    """The part that answers it, and the key under which that is stored."""

    def _reuse_of(self, entry: Entry) -> Reuse:
        """Whether this request may be served a stored response now."""
        reuse = judge_reuse(entry, self._wanted, self._config.clock())
        # What asks in the background stores what it is told, so nobody asks for a request whose answer is not stored.
        return reuse if self._usable.stores else replace(reuse, while_revalidating=False)

    def explain(self) -> Explanation:
        """What is known now: before the response its request's side, afterwards both."""
        context, scope, uri, policy = self._context, self._scope, self._uri, self._context.match.policy
        entry = self._lookup.record if isinstance(self._lookup.record, Entry) else None
        names, key = self._names(entry), None
        reuse = self._reuse_of(entry) if entry is not None else None
        if self._in_part is not None:
            entry, reuse, key = self._in_part
        steps = [request_step(self._usable, policy)]
        if context.is_open("cache"):
            steps.append(reuse_step(entry, reuse, self._wanted))
        if self._lookup.positions is None:
            steps.append(_NO_POSITIONS)
        verdict, stored = self._told()
        if self._answered is not None and verdict is not None:
            targeted = control_of(self._answered[1]).targeted
            kept_back = "" if stored or isinstance(verdict, Refused) else self._kept_back()
            steps += response_steps(verdict, targeted, kept_back, self._answered[0])
        elif is_refused(reuse, self._wanted):
            stored = False
        elif reuse is None or not reuse.fresh:
            steps.append(self._foreseen())
        kept = verdict if isinstance(verdict, Kept) else None
        names = kept.vary if kept is not None else names
        if key is None:
            status, headers, _ = self._answered or (0, (), False)
            key = self._key_for(names, status, headers)
        return Explanation(
            method=scope["method"],
            url=_url(scope, uri, self._config.credentials),
            identity=context.identity,
            route=policy.route if policy is not None else None,
            layers=layers_of(context.decision),
            steps=tuple(steps),
            stored=stored,
            share=self._share,
            lifetime=kept.lifetime if kept is not None else None,
            rule=kept.rule if kept is not None else None,
            stale_while_revalidate=kept.stale_while_revalidate if kept is not None else 0.0,
            stale_if_error=kept.stale_if_error if kept is not None else 0.0,
            key=key_of(
                self._named.parts,
                share=self._share,
                query=scope.get("query_string", b""),
                policy=policy,
                request=self._request,
                vary=names,
                credentials=self._config.credentials,
                hashed=self._config.shown_key(key),
            ),
            tags=tuple(dict.fromkeys(self._tags(self._answered[1] if self._answered is not None else ()))),
            found=stored_of(entry, reuse) if entry is not None and reuse is not None else None,
            status=self._answered[0] if self._answered is not None else None,
        )

    def _told(self) -> tuple[Kept | Refused | None, bool | None]:
        """The verdict about the response that came, and whether it is stored if it comes whole."""
        if self._answered is None:
            return None, None if self._usable.stores else False
        status, headers, own_etag = self._answered
        verdict = self._judged(status, headers, own_etag=own_etag)
        if self._kept is not None:
            return verdict, isinstance(verdict, Kept)
        return self._aged(verdict, status, headers, own_etag=own_etag), False

    def _foreseen(self) -> Step:
        """What would become of a plain 200, which says nothing itself."""
        verdict = self._judged(200, (), own_etag=False)
        if isinstance(verdict, Kept):
            found = f"a plain 200 would be stored for {verdict.lifetime:g} s"
        else:
            found = f"a plain 200 would not be stored: {verdict.reason}"
        return Step(about="note", found=found, because="no response has come yet; its own fields decide")

    def _kept_back(self) -> str:
        """Why a response that may be stored is not this time."""
        if self._scope["method"] == "HEAD":
            return "the answer to a HEAD has no body to store"
        if self._context.collapsed:
            return "it is the answer of an identical request's run, which stores it"
        if self._lookup.positions is None:
            return _NO_POSITIONS.because
        if self._limit == "headers":
            return f"its header fields are longer than {MAX_HEADER_BYTES} bytes"
        policy = self._context.match.policy
        most = policy.max_body if policy is not None else self._config.max_body
        return f"its body is longer than max_body ({most} bytes)" if self._limit == "body" else "it has trailers"

    def _names(self, entry: Entry | None) -> tuple[bytes, ...]:
        """The request fields that count, as far as they are known without a response."""
        if entry is not None:
            return tuple(name for name, _ in entry.vary)
        if self._variants is not None:
            return self._variants.names
        policy = self._context.match.policy
        return tuple(name.lower().encode() for name in (policy.vary if policy is not None else ()))

    async def look(self) -> None:
        """Look up what is stored, and no more."""
        self._lookup = await self._look_up()

    def explain_answer(self, client: "Collected", kept: "KeepsNothing") -> Explanation:
        """What came of a request that was answered in full on a store that keeps nothing."""
        told = self.explain()
        status = client.cache_status
        if client.failed is not None:
            found = f"the app raised {client.failed}"
            told = replace(told, steps=(*told.steps, Step(about="response", found=found, source="P1")))
        if kept.entry is not None:
            entry = kept.entry
            return replace(
                told,
                stored=True,
                lifetime=entry.lifetime,
                stale_while_revalidate=entry.stale_while_revalidate,
                stale_if_error=entry.stale_if_error,
                tags=entry.tags,
                cache_status=status,
            )
        if not told.stored:
            return replace(told, stored=False, cache_status=status)
        if len(told.tags) > MAX_TAGS:
            because = f"it has {len(told.tags)} tags, and {MAX_TAGS} is the most"
        else:
            because = "its body is longer than max_body, is not as long as its Content-Length, or was cut off"
        late = Step(about="response", found="is not stored after all", because=because, source="P6, RFC 9111 3.3")
        return replace(told, stored=False, steps=(*told.steps, late), cache_status=status)


class KeptForGet(Protocol):
    """What may keep the answer to a POST for GET. begun: there is one. kept: the verdict, if it is being kept."""

    begun: bool

    @property
    def kept(self) -> Kept | None: ...


class Unsafe:
    """An unsafe request: its success purges, and its answer is not stored, but for a POST's that says so.

    posted: what may keep a POST's answer for GET.
    """

    def __init__(
        self,
        scope: Scope,
        context: RequestContext,
        uri: Callable[[], Uri],
        tags: Callable[[], Sequence[ScopedTag]],
        credentials: Credentials,
    ) -> None:
        self._scope = scope
        self._context = context
        self._uri = uri
        self._tags = tags
        self._credentials = credentials
        self.posted: KeptForGet | None = None

    def explain(self) -> Explanation:
        """What a success purges, as far as it is known before the response; and whether a POST's answer is kept."""
        context, policy, tags = self._context, self._context.match.policy, self._tags()
        kept = self.posted.kept if self.posted is not None else None
        steps = (
            Step(
                about="request",
                found=f"goes past the cache: nothing is served{'' if self.posted is not None else ' or stored'}",
                because=f"{self._scope['method']} is not safe",
                source="RFC 9111 4",
            ),
            Step(
                about="purge",
                found=f"a 2xx or 3xx purges {len(tags)} tags before it starts, whoever's gate is shut",
                because="its own URL in every share, and what the policy invalidates",
                source="RFC 9111 4.4, P4",
            ),
            Step(
                about="note",
                found="Location, Content-Location and Cache-Group-Invalidation of the response purge more",
                source="RFC 9111 4.4, RFC 9875 3",
            ),
            *((_kept_for_get(kept, begun=self.posted.begun),) if self.posted is not None else ()),
        )
        return Explanation(
            method=self._scope["method"],
            url=_url(self._scope, self._uri(), self._credentials),
            identity=context.identity,
            route=policy.route if policy is not None else None,
            layers=layers_of(context.decision),
            steps=steps,
            stored=None if self.posted is not None and not self.posted.begun else kept is not None,
            lifetime=kept.lifetime if kept is not None else None,
            rule=kept.rule if kept is not None else None,
            purges=tuple(tags),
        )


def _kept_for_get(kept: Kept | None, *, begun: bool) -> Step:
    """What becomes of a POST's answer."""
    if kept is not None:
        found = f"is kept for GET for {kept.lifetime:g} s, if it comes whole"
    else:
        found = f"{'is not' if begun else 'is'} kept for GET{'' if begun else ', if it is what a GET would get'}"
    because = "a 200 whose Content-Location is its own URL, with max-age, s-maxage or Expires"
    return Step(about="response", found=found, because=because, source="RFC 9110 9.3.3, RFC 9111 4")


class KeepsNothing:
    """A store that can be read, and only notes what it was to keep. entry: the response that was to be stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.entry: Entry | None = None

    @property
    def local(self) -> bool:
        return self._store.local

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

    async def get(self, key: bytes, scopes: Sequence[str] = ()) -> Lookup:
        return await self._store.get(key, scopes)

    async def put(self, key: bytes, record: Record, *, retain: float) -> bool:
        if isinstance(record, Entry):
            self.entry = record
        return True

    async def delete(self, key: bytes) -> None: ...

    async def purge(self, tags: Mapping[str, Sequence[Target]]) -> Purge:
        return Purge("done", sum(map(len, tags.values())))

    def stats(self) -> StoreStats:
        return self._store.stats()


class NoRefreshes(Refreshes):
    """Says that a refresh is under way, and begins none."""

    def begin(self, key: bytes, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        return True


class Collected:
    """A client of its own: the head of what was sent to it. failed: the name of the exception that the app raised."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.failed: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self.status is None:
            self.status, self.headers = message["status"], tuple(message.get("headers", ()))

    @property
    def cache_status(self) -> str | None:
        """What this cache said of it; ours is the last member (RFC 9211 2)."""
        lines = [value for name, value in self.headers if name.lower() == b"cache-status"]
        return lines[-1].decode("latin-1") if lines else None


def explain_request(
    scope: Scope, context: RequestContext, verdict: Usable | Bypass, uri: Uri, credentials: Credentials
) -> Explanation:
    """The request's side, where the cache neither serves nor stores."""
    policy = context.match.policy
    return Explanation(
        method=scope["method"],
        url=_url(scope, uri, credentials),
        identity=context.identity,
        route=policy.route if policy is not None else None,
        layers=layers_of(context.decision),
        steps=(request_step(verdict, policy),),
        stored=False,
    )


def without_effect(config: CacheConfig) -> tuple[CacheConfig, KeepsNothing]:
    """The same cache, but it stores nothing, refreshes nothing, and counts where nobody looks."""
    kept = KeepsNothing(config.store)
    metrics = Metrics(CollectorRegistry())
    in_part = config.in_part.copy()
    return replace(config, store=kept, metrics=metrics, refreshes=NoRefreshes(metrics), in_part=in_part), kept


def _url(scope: Scope, uri: Uri, credentials: Credentials) -> str:
    return shown_url(uri.scheme, uri.host, uri.raw_path, scope.get("query_string", b""), credentials)
