"""Which layers are open for a request: one decision for all flags, remembered until the flags change.

Guarantees: within one state of the flags a unit always gets the same decision; nobody known, no state yet, or a
provider that fails: shut. A flag that is open for some only is shut once its state is older than `max_staleness`
(P8): a rollout that nobody can stop any more must not go on. A flag that is open for everybody stays so. A stopped flag
is shut for everybody, and every flag is until it is known which are stopped.

Who subscribes hears of every change of a layer's reach: of a layer that shuts, when no decision opens it any more; of
one that opens, before the first does. A change is noticed at the next decision, that a state has grown old at the
sixteenth at the latest; both at each `refresh`, which whoever runs the gates calls a few times a second.

Not guaranteed: that two workers see a change in the same moment; they do within the provider's poll interval. Nor that
a reach which came and went between two looks is heard of.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from tidegate.errors import Problems
from tidegate.flags.evaluate import FlagContext, band_of, normalized
from tidegate.flags.provider import SHADOW, FlagProvider, HasExtents, HasVariants, ProviderHealth, Reach
from tidegate.flags.reasons import why_out, why_shut
from tidegate.flags.report import OnError, Reporter
from tidegate.flags.stops import Stops
from tidegate.flags.usage import ReportsUsage, Tally, Usage
from tidegate.vocabulary import BAND_EDGES, CANARY, CONTROL, FLAGS, LAYERS, NO_COHORT, Unit

__all__ = ["UNIT_FIELDS", "Decision", "Gates", "ReachChanged"]

UNIT_FIELDS: Final[Mapping[Unit, str]] = {"tenant": "tenantId", "user": "userId", "session": "sessionId"}
"""The context field, and so the stickiness, that stands for each unit."""

_NO_BAND: Final = "none"

_TRUSTED: Final = 15
"""So many decisions may follow one look at the clock, which would cost each a fifth more."""

_LONGEST_REMEMBERED: Final = 1024
"""Characters of a context, all its names and values together, whose decision is remembered."""

_EQUALS: Final = 4096
"""Decisions and sets of labels that are remembered, so that equal ones are one object."""

_Labels = tuple[str, str, str]
_T = TypeVar("_T", bound=Hashable)


ReachChanged = Callable[[Mapping[str, Reach], Mapping[str, Reach]], None]
"""Hears of a change: the reach of every layer before and after it. Called in whichever thread noticed; be quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the flags decided for one request.

    open: the layers whose gate is open.
    cohorts: for every flag (flag, band, cohort): the labels of its cohort counters.
    shadow: of the open layers, those that are to compare and not to act.
    tally: counts the requests that were decided so.
    unit: whom it was decided for. reasons: says why a flag is shut for a unit, at the moment of asking.
    """

    open: frozenset[str]
    cohorts: tuple[_Labels, ...]
    shadow: frozenset[str] = frozenset()
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)
    unit: str = field(default="", compare=False, repr=False)
    reasons: Callable[[str, str], str] | None = field(default=None, compare=False, repr=False)

    def why(self, flag: str) -> str:
        """Why a flag that is shut for this unit is, as far as it can be told now."""
        return self.reasons(flag, self.unit) if self.reasons is not None else f"{flag} is shut"


class Gates:
    """Decides for all flags at once and remembers the answer per context.

    provider: where the flags come from. Starting and closing it is its owner's business. One that reports usage is told
        of every decision, remembered or not.
    stops: which flags are stopped, whatever the provider says; None: none is. Starting and closing it likewise.
    flags: layer -> the flag that gates it; several layers may share one.
    unit: whom percentages are drawn over. Its context field (UNIT_FIELDS) always carries the context's unit.
    edges: upper edges of the bands in percent, ascending to 100. A unit's band in a flag is the first edge at or above
        its place, hashed with the flag's own name as the group, as the rollout's strategies do.
    max_units: how many decisions are remembered; the oldest goes first. One costs about 0.5 KiB. One of a context of
            more than 1024 characters is made anew each time.
    max_staleness: seconds after which a partly open flag shuts.
    on_error: hears, as "flags", of a provider that fails. Default: the log.
    clock: seconds, monotonic.

    Raises:
        ConfigError: naming every argument that cannot be used.
    """

    def __init__(
        self,
        provider: FlagProvider,
        *,
        stops: Stops | None = None,
        flags: Mapping[str, str] | None = None,
        unit: Unit = "tenant",
        edges: Sequence[int] = BAND_EDGES,
        max_units: int = 100_000,
        max_staleness: float = 60.0,
        on_error: OnError | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.flags: Mapping[str, str] = dict[str, str](FLAGS.items() if flags is None else flags.items())
        _check(self.flags, unit, edges, max_units, max_staleness)
        self.unit: Unit = unit
        self._provider = provider
        self._open_as = provider.open_as if isinstance(provider, HasVariants) else self._plainly
        self._stops: Stops = stops if stops is not None else _NoStops()
        self._edges = tuple(edges)
        self._max_units = max_units
        self._max_staleness = max_staleness
        self._report = Reporter("flags", on_error)
        self._clock = clock
        self._unit_field = UNIT_FIELDS[unit]
        self._layers: dict[str, frozenset[str]] = {
            flag: frozenset(layer for layer, gate in self.flags.items() if gate == flag) for flag in self.flags.values()
        }
        self.usage = Usage(self._layers)
        if isinstance(provider, ReportsUsage):
            provider.report_usage(self.usage)
        self._shut_tally = self.usage.tally(frozenset())
        self.nobody = Decision(
            open=frozenset(),
            cohorts=tuple((flag, _NO_BAND, NO_COHORT) for flag in self._layers),
            tally=self._shut_tally,
        )
        self._labels = {labels: labels for labels in self.label_combinations()}
        self._open_sets: dict[frozenset[str], frozenset[str]] = {}
        self._equals: dict[object, object] = {}
        self._remembered: OrderedDict[object, Decision] = OrderedDict()
        self._reaches: dict[str, Reach] = dict.fromkeys(self._layers, "nobody")
        self._subscribers: tuple[ReachChanged, ...] = ()
        self._renewing = threading.RLock()
        self._version = self._stops_version = -1
        self._stale = False
        self._known = False
        self._look_again_at = -math.inf
        self._trusted = 0

    @property
    def known(self) -> bool:
        """Whether it was ever known what the flags are and which are stopped. Before that all are shut."""
        return self._known

    def label_combinations(self) -> tuple[_Labels, ...]:
        """Every (flag, band, cohort) that a decision can carry, so that the cohort counters can start at 0."""
        known = [
            (flag, str(edge), cohort) for flag in self._layers for edge in self._edges for cohort in (CANARY, CONTROL)
        ]
        return (*known, *self.nobody.cohorts)

    def decide(self, context: FlagContext) -> Decision:
        """What is open for this context. Never raises; whatever fails is shut and reported."""
        try:
            if self._version != self._provider.version or self._stops_version != self._stops.version:
                self._renew()
            elif self._trusted > 0:
                self._trusted -= 1
            else:
                self._check_age()
            remembered = self._remembered
            try:
                found = remembered[context.key]
            except KeyError:
                found = self._decide(context.key, context, remembered)
        except Exception as error:  # noqa: BLE001 - P5: the app answers whatever the flags do; counted by on_error
            self._report(error)
            found = self._shut(context.unit)
        found.tally.decisions += 1
        return found

    def decide_for(self, tenant: str | None, user: str | None = None, session: str | None = None) -> Decision:
        """As `decide`, for a context that knows no more than these names. Quicker: it is built only when new."""
        try:  # the same lines as in decide(): a call between them would cost more than they do
            if self._version != self._provider.version or self._stops_version != self._stops.version:
                self._renew()
            elif self._trusted > 0:
                self._trusted -= 1
            else:
                self._check_age()
            remembered = self._remembered
            try:
                found = remembered[tenant, user, session]
            except KeyError:
                found = self._decide((tenant, user, session), self._context(tenant, user, session), remembered)
        except Exception as error:  # noqa: BLE001 - as in decide()
            self._report(error)
            found = self._shut({"tenant": tenant, "user": user, "session": session}[self.unit])
        found.tally.decisions += 1
        return found

    def refresh(self) -> bool:
        """Notice changes of the flags, the stops and their age now, without a request. Quick; never raises.

        False, and reported, if they cannot be told: decisions are then shut.
        """
        try:
            if self._version != self._provider.version or self._stops_version != self._stops.version:
                self._renew()
            else:
                self._check_age()
        except Exception as error:  # noqa: BLE001 - as in decide()
            self._report(error)
            return False
        return True

    def reach(self, layer: str) -> Reach:
        """Whom a layer is open for at this moment, stops and staleness considered; "nobody" for one without a flag."""
        if not self.refresh():
            return "nobody"
        return self._reaches.get(self.flags.get(layer, ""), "nobody")

    def subscribe(self, callback: ReachChanged) -> None:
        """Call `callback(before, after)` at each change of any layer's reach; all start with "nobody".

        Also once when the flags are first known (`known`), though that may change nothing.
        What it raises is reported. It may ask `reach`, which then tells what is in force while the callbacks run.
        """
        with self._renewing:
            self._subscribers = (*self._subscribers, callback)

    def health(self) -> ProviderHealth:
        """The provider's health; one that fails to tell is not ready."""
        try:
            return self._provider.health()
        except Exception as error:  # noqa: BLE001 - P5, as in decide()
            self._report(error)
            return ProviderHealth(ready=False, staleness=math.inf, detail=f"{type(error).__name__}: {error}")

    def _context(self, tenant: str | None, user: str | None, session: str | None) -> FlagContext:
        known = {"tenantId": tenant, "userId": user, "sessionId": session}
        properties = {name: value for name, value in known.items() if value is not None}
        return FlagContext(unit=known[self._unit_field], properties=properties)

    def _check_age(self) -> None:
        self._trusted = _TRUSTED
        if self._clock() >= self._look_again_at:
            self._renew()

    def _renew(self) -> None:
        """Take over the state of the flags and stops if it has changed, or grown old or fresh again."""
        with self._renewing:
            version, stops_version = self._provider.version, self._stops.version
            health = self.health()
            staleness = health.staleness
            stale = not staleness <= self._max_staleness  # nor is one fresh whose age is no number
            news = not self._known and health.ready and self._stops.known
            if news or (version, stops_version, stale) != (self._version, self._stops_version, self._stale):
                before = self._reaches
                after: dict[str, Reach] = {flag: self._reach_of(flag, stale) for flag in self._layers}
                # First only what shuts, then the subscribers hear of it, then what opens.
                meanwhile: dict[str, Reach] = {
                    flag: "nobody" if before[flag] == "nobody" else after[flag] for flag in after
                }
                self._enforce(meanwhile)
                self._version, self._stops_version, self._stale = version, stops_version, stale
                self._known = self._known or news
                if news or before != after:
                    self._tell(before, after)
                    self._enforce(after)
            # A state of this age cannot be too old before then; once it is, look often, so that fresh news counts.
            self._look_again_at = self._clock() + (0.25 if stale else max(self._max_staleness - staleness, 0.01))

    def _reach_of(self, flag: str, stale: bool) -> Reach:
        if not self._stops.known or self._stops.stopped(flag):
            return "nobody"
        reach = self._provider.reach(flag)
        return "nobody" if stale and reach == "some" else reach

    def _enforce(self, reaches: dict[str, Reach]) -> None:
        self._reaches = reaches  # before the memory: what is remembered in the new one is decided by these
        self._remembered, self._equals = OrderedDict(), {}

    def _tell(self, before: Mapping[str, Reach], after: Mapping[str, Reach]) -> None:
        was: dict[str, Reach] = {layer: before[flag] for layer, flag in self.flags.items()}
        now: dict[str, Reach] = {layer: after[flag] for layer, flag in self.flags.items()}
        for callback in self._subscribers:
            try:
                callback(was, now)
            except Exception as error:  # noqa: BLE001 - the others must hear of it, and the flags go on; counted
                self._report(error)

    def _decide(self, key: object, context: FlagContext, remembered: OrderedDict[object, Decision]) -> Decision:
        # Into the memory that the caller looked in, never the current one: while this runs, another thread may have
        # put a new one in its place, for flags that this decision does not know.
        decision = self._evaluate(context)
        # Some of the names may be chosen by whoever asks: many long ones would be held for long (P6).
        if len(context.key) > _LONGEST_REMEMBERED:
            return decision
        decision = self._one((decision.unit, decision))[1]
        while len(remembered) >= self._max_units:
            remembered.popitem(last=False)
        remembered[key] = decision
        return decision

    def _evaluate(self, context: FlagContext) -> Decision:
        unit = context.unit
        if unit is None:
            return self.nobody
        if context.properties.get(self._unit_field) != unit:
            context = FlagContext(unit=unit, properties={**context.properties, self._unit_field: unit})
        reaches = self._reaches
        opened: list[str] = []
        shadowed: list[str] = []
        cohorts: list[_Labels] = []
        for flag in self._layers:
            # A provider may have a state already that the subscribers have not heard of: it opens nothing yet.
            variant = self._open_as(flag, context) if reaches[flag] != "nobody" else None
            is_open = variant is not None
            if is_open:
                opened.append(flag)
                if variant == SHADOW:
                    shadowed.append(flag)
            cohorts.append(self._labels[flag, self._band(flag, unit), CANARY if is_open else CONTROL])
        return Decision(
            open=self._layers_of(opened),
            shadow=self._layers_of(shadowed),
            cohorts=self._one(tuple(cohorts)),
            tally=self.usage.tally(frozenset(opened)),
            unit=unit,
            reasons=self._why,
        )

    def _plainly(self, flag: str, context: FlagContext) -> str | None:
        return "" if self._provider.is_enabled(flag, context) else None

    def _layers_of(self, flags: Sequence[str]) -> frozenset[str]:
        layers = frozenset[str]().union(*(self._layers[flag] for flag in flags))
        return self._open_sets.setdefault(layers, layers)

    def _one(self, value: _T) -> _T:
        """One object for all that are equal: thousands of users share what is decided for their tenant."""
        if value not in self._equals and len(self._equals) >= _EQUALS:
            self._equals.clear()
        return cast(_T, self._equals.setdefault(value, value))

    def _shut(self, unit: str | None) -> Decision:
        if unit is None:
            return self.nobody
        cohorts = self._one(tuple(self._labels[flag, self._band(flag, unit), CONTROL] for flag in self._layers))
        return Decision(open=frozenset(), cohorts=cohorts, tally=self._shut_tally, unit=unit, reasons=self._why)

    def _why(self, flag: str, unit: str) -> str:
        provider, stops = self._provider, self._stops
        everybody = why_shut(
            flag, provider.reach(flag), known=stops.known, stopped=stops.stopped(flag), stale=self._stale,
            max_staleness=self._max_staleness,
        )  # fmt: skip
        if everybody is not None:
            return everybody
        extent = provider.extent(flag) if isinstance(provider, HasExtents) else None
        return why_out(flag, extent, unit, self._unit_field)

    def _band(self, flag: str, unit: str) -> str:
        return band_of(normalized(flag, unit), self._edges)


class _NoStops:
    """Nothing is ever stopped."""

    def __init__(self) -> None:
        self.version = 0  # of the instance, not the class: each decision reads it, and this is twice as quick
        self.known = True

    def stopped(self, flag: str) -> bool:
        return False

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def _check(flags: Mapping[str, str], unit: Unit, edges: Sequence[int], max_units: int, max_staleness: float) -> None:
    problems = Problems("flags")
    for layer, flag in flags.items():
        if layer not in LAYERS:
            problems.add(f"flags[{layer!r}]", flag, "gates no layer", f"use {', '.join(LAYERS)}")
        if not flag:
            problems.add(f"flags[{layer!r}]", flag, "is no flag's name", f'write "tidegate.{layer}"')
    if unit not in UNIT_FIELDS:
        problems.add("unit", unit, "is not a unit", f"use {', '.join(UNIT_FIELDS)}")
    if not edges or list(edges) != sorted(set(edges)) or edges[0] < 1 or edges[-1] != 100:
        problems.add("edges", tuple(edges), "do not ascend from at least 1 to 100", f"write {BAND_EDGES}")
    if max_units < 1:
        problems.add("max_units", max_units, "is less than one unit", "write 100000")
    if not max_staleness > 0:
        problems.add("max_staleness", max_staleness, "is not a positive number of seconds", "write 60")
    problems.raise_if_any()
