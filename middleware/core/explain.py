"""Why the cache does what it does with one request: an account of decisions that were made elsewhere.

Nothing is judged here. What goes in are the verdicts of the functions that the request path itself asks
(`judge_request`, `judge_response`, `judge_reuse`); what comes out says them in words, each with its rule, where that
comes from, and what would change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tidegate.middleware.core.explain_key import Key
from tidegate.middleware.core.explain_rules import BYPASSED, LIFETIMES, SHARES, Rule, rule_of_bypass, rule_of_refusal
from tidegate.middleware.core.explain_text import lines_of
from tidegate.middleware.core.identity import Identity
from tidegate.middleware.core.policy import Match, RoutePolicy, Share
from tidegate.middleware.core.records import Entry, ScopedTag
from tidegate.middleware.core.reuse import Reuse, is_refused
from tidegate.middleware.core.storing import Bypass, Kept, Refused, RequestDirectives, Usable
from tidegate.vocabulary import CONTROL, FLAGS, LAYERS, NO_COHORT

__all__ = [
    "SHADOWED",
    "Explanation",
    "LayerState",
    "Opened",
    "Step",
    "Stored",
    "aside",
    "layers_of",
    "request_step",
    "response_steps",
    "reuse_step",
    "shut_step",
    "stored_of",
]

Pairs = Sequence[tuple[bytes, bytes]]
Serving = Literal["fresh", "while-revalidating", "on-error", "ask-first", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One judgement. about: what was judged. found: the verdict. because: the rule in words. source: RFC and section,
    promise, or policy. fix: what would change it; empty where nothing has to.
    """

    about: Literal["layer", "request", "stored response", "response", "lifetime", "stale", "purge", "note"]
    found: str
    because: str = ""
    source: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """Whether a layer is open for this request, and why. band, cohort: as counters have them, where flags are."""

    layer: str
    open: bool
    why: str
    flag: str = ""
    band: str = ""
    cohort: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A stored response that the request selects. age, ttl: whole seconds; ttl is negative when it is stale.

    serving: `fresh`: it is served; `while-revalidating`: it is, while the app is asked in the background; `on-error`:
    it stands in if the app fails; `ask-first`: not without asking the app.
    """

    status: int
    age: int
    ttl: int
    lifetime: float
    stale_while_revalidate: float
    stale_if_error: float
    serving: Serving
    tags: tuple[ScopedTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the cache does with one request, as far as it is known at this moment.

    stored: whether the response is stored; None where there is no response yet, or none was asked for.
    share: whose it is or would be; None where the cache stands aside.
    lifetime: seconds fresh; rule: what said so. stale_while_revalidate, stale_if_error: seconds past it.
    tags: what the entry depends on, by scope. purges: what a success of this unsafe request purges.
    found: the stored response that was there. cache_status: what Cache-Status says; None where it is not known yet.
    method, url: None where only the request's context is at hand. status: of the app's answer, once it has begun.
    """

    method: str | None
    url: str | None
    identity: Identity | None
    route: str | None
    layers: tuple[LayerState, ...] = ()
    steps: tuple[Step, ...] = ()
    stored: bool | None = None
    share: Share | None = None
    lifetime: float | None = None
    rule: str | None = None
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    key: Key | None = None
    tags: tuple[ScopedTag, ...] = ()
    purges: tuple[ScopedTag, ...] = ()
    found: Stored | None = None
    cache_status: str | None = None
    status: int | None = None

    def __str__(self) -> str:
        """As `tidegate cache explain` prints it, in lines; without credentials, and on any terminal."""
        return "\n".join(lines_of(self))

    @property
    def served(self) -> bool:
        """Whether the request is answered from the store without waiting for the app."""
        return self.found is not None and self.found.serving in ("fresh", "while-revalidating")


class Opened(Protocol):
    """What of a flag decision tells why a layer is open."""

    @property
    def open(self) -> frozenset[str]: ...
    @property
    def cohorts(self) -> tuple[tuple[str, str, str], ...]: ...
    @property
    def shadow(self) -> frozenset[str]: ...

    # And, where it knows: why(flag) -> str, for a flag that is shut.


def layers_of(decision: Opened | None) -> tuple[LayerState, ...]:
    """Each layer: open or shut for this request, and why."""
    if decision is None:
        return tuple(
            LayerState(layer=layer, open=True, why="no flags: a layer that is mounted is open") for layer in LAYERS
        )
    known = {flag: (band, cohort) for flag, band, cohort in decision.cohorts}
    return tuple(_layer(layer, FLAGS[layer], decision, known.get(FLAGS[layer])) for layer in LAYERS)


def _layer(layer: str, flag: str, decision: Opened, known: tuple[str, str] | None) -> LayerState:
    is_open = layer in decision.open
    if known is None:
        why = f"{flag} is open" if is_open else "the flags could not be asked"
        return LayerState(layer=layer, open=is_open, why=why, flag=flag)
    band, cohort = known
    if is_open:
        why = f"{flag} lets this unit in; it is in the band of {band} %"
        why += ", in shadow mode" if layer in decision.shadow else ""
    elif cohort == CONTROL:
        asked = getattr(decision, "why", None)
        why = asked(flag) if asked is not None else f"{flag} does not let this unit in, is stopped, or is not known yet"
        why += f"; it is in the band of {band} %"
    else:
        why = f"{flag}: no unit is known (no identity), and for such requests it is shut, at 100 % too"
    return LayerState(layer=layer, open=is_open, why=why, flag=flag, band=band, cohort=cohort)


def aside(
    identity: Identity | None, match: Match, decision: Opened | None, outcome: str | None, reason: str | None
) -> Explanation:
    """What is known of a request whose cache stands aside, or is not there, or has answered already."""
    layers = layers_of(decision)
    cache = next(layer for layer in layers if layer.layer == "cache")
    if not cache.open:
        step = shut_step(layers)
    elif outcome == "bypass" and reason is not None:
        step = _step("request", "goes past the cache: nothing is served or stored", BYPASSED[reason])
    elif outcome == "shadow":
        step = SHADOWED
    elif outcome is not None:
        step = Step(about="note", found=f"the request is over, and was a {outcome}", because="ask while it runs")
    else:
        step = Step(
            about="layer", found="no cache has seen this request", because="none is mounted above, or it is over"
        )
    route = match.policy.route if match.policy is not None else None
    stored = None if outcome not in ("bypass", "shadow") and cache.open else False
    return Explanation(
        method=None, url=None, identity=identity, route=route, layers=layers, steps=(step,), stored=stored
    )


SHADOWED: Final = Step(
    about="layer",
    found="shadow mode: the app answers, nothing is served or stored",
    because="policy or flag ask for a comparison only",
    source="policy or flag",
    fix='mode = "serve", and no variant "shadow" on the flag',
)


def shut_step(layers: Sequence[LayerState]) -> Step:
    """The cache's gate is shut for this request."""
    cache = next(layer for layer in layers if layer.layer == "cache")
    fix = f"tidegate flags status {cache.flag}" + (" --unit NAME" if cache.cohort == CONTROL else "")
    if cache.cohort == NO_COHORT:
        fix = "let identify() name who asks, or Tidegate(properties=...) a unit for such requests: docs/flags.md"
    return Step(about="layer", found="the cache is shut: nothing is served or stored", because=cache.why,
                source="P1", fix=fix)  # fmt: skip


def request_step(verdict: Usable | Bypass, policy: RoutePolicy | None) -> Step:
    """May the request use the cache, and within which share."""
    if isinstance(verdict, Bypass):
        return _step("request", "goes past the cache: nothing is served or stored", rule_of_bypass(verdict))
    rule = SHARES[verdict.share]
    source = f"{rule.source.removesuffix(', policy or mount')}, " if "P2" in rule.source else ""
    says = f"policy of {policy.route}" if policy is not None else "no policy: the share of the mount (cache.share)"
    found = f"may use the cache, share {verdict.share}"
    if not verdict.stores:
        found += ", for what is stored for everybody; its own answer is not stored"
    return Step(about="request", found=found, because=rule.words, source=source + says)


def response_steps(
    verdict: Kept | Refused, targeted: bytes | None, kept_back: str = "", status: int | None = None
) -> list[Step]:
    """May the response be stored, for how long is it fresh, and for how long may it be used when it is not.

    targeted: the field that counted instead of Cache-Control. kept_back: why it is not stored although it may be.
    status: of the response.
    """
    if isinstance(verdict, Refused):
        rule = rule_of_refusal(verdict, status)
        return [_step("response", f"may not be stored: {verdict.reason}", rule)]
    may = Step(about="response", found="may be stored", because="nothing forbids it", source="RFC 9111 3")
    if kept_back:
        may = Step(about="response", found="may be stored, and is not this time", because=kept_back, source="P6, P1")
    rule = LIFETIMES[verdict.rule]
    words = rule.words + (f", in {targeted.decode()} (RFC 9213 2.2)" if targeted is not None else "")
    steps = [may, _step("lifetime", f"{verdict.lifetime:g} s", Rule(words, rule.source))]
    windows = f"stale-while-revalidate {verdict.stale_while_revalidate:g} s"
    windows += f", stale-if-error {verdict.stale_if_error:g} s"
    if verdict.must_revalidate:
        because, source = "must-revalidate, proxy-revalidate, s-maxage or no-cache forbid both", "RFC 9111 4.2.4"
    else:
        because, source = "the response's own, else the policy's", "RFC 5861 3, 4"
    return [*steps, Step(about="stale", found=windows, because=because, source=source)]


def reuse_step(entry: Entry | None, reuse: Reuse | None, wanted: RequestDirectives) -> Step:
    """May what is stored be served now."""
    if is_refused(reuse, wanted):
        held = (
            "nothing is stored that may be served" if entry is None else "what is stored is not to be served as it is"
        )
        return Step(about="stored response", found="none: the answer is 504, and the app is not asked",
                    because=f"the client wants what is stored or nothing, and {held}",
                    source="RFC 9111 5.2.1.7")  # fmt: skip
    if entry is None or reuse is None:
        return Step(about="stored response", found="none: the app is asked", because="nothing is stored under this key")
    if reuse.fresh:
        if reuse.ttl > 0 or entry.lifetime - reuse.age > 0:
            return Step(
                about="stored response",
                found=f"is served, fresh for {reuse.ttl} s more",
                because=f"it is {reuse.age} s old and fresh for {entry.lifetime:g} s",
                source="RFC 9111 4.2",
            )
        return Step(about="stored response", found="is served, stale", because="the client takes it (max-stale)",
                    source="RFC 9111 5.2.1.2")  # fmt: skip
    because, source = _unfit(entry, reuse, wanted)
    if reuse.while_revalidating:
        found, source = "is served, stale; the app is asked in the background", "RFC 5861 3"
    elif reuse.stale_on_error:
        found, source = "the app is asked; if it fails, this stands in", "RFC 5861 4"
    elif reuse.disconnected:
        found = "the app is asked; if it answers 502 or 504, this stands in"
    else:
        found = "the app is asked first"
    return Step(about="stored response", found=found, because=because, source=source)


def _unfit(entry: Entry, reuse: Reuse, wanted: RequestDirectives) -> tuple[str, str]:
    """Why what is stored is not simply served; for the words only, `judge_reuse` has decided."""
    if wanted.no_cache:
        return "the client insists (no-cache)", "RFC 9111 5.2.1.4"
    if entry.no_cache:
        return "it says no-cache", "RFC 9111 5.2.2.4"
    if reuse.insists:
        return "the client wants it fresher (max-age, min-fresh)", "RFC 9111 5.2.1.1, 5.2.1.3"
    return f"it is {reuse.age} s old and was fresh for {entry.lifetime:g} s", "RFC 9111 4.2.4"


def stored_of(entry: Entry, reuse: Reuse) -> Stored:
    """The stored response in figures."""
    serving: Serving = "ask-first"
    if reuse.fresh:
        serving = "fresh"
    elif reuse.while_revalidating:
        serving = "while-revalidating"
    elif reuse.stale_on_error:
        serving = "on-error"
    return Stored(
        status=entry.status,
        age=reuse.age,
        ttl=reuse.ttl,
        lifetime=entry.lifetime,
        stale_while_revalidate=entry.stale_while_revalidate,
        stale_if_error=entry.stale_if_error,
        serving=serving,
        tags=entry.tags,
    )


def _step(about: Literal["request", "response", "lifetime"], found: str, rule: Rule) -> Step:
    return Step(about=about, found=found, because=rule.words, source=rule.source, fix=rule.fix)
