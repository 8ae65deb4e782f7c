"""Which layers are open for a request: one decision for all flags, remembered until the flags change.

Guarantees: within one state of the flags a unit always gets the same decision; nobody known, no state yet, or a
provider that fails: shut. A flag that is open for some only is shut once its state is older than `max_staleness`
(P8): a rollout that nobody can stop any more must not go on. A flag that is open for everybody stays so.

Not guaranteed: that two workers see a change in the same moment; they do within the provider's poll interval.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tidegate.errors import Problems
from tidegate.flags.evaluate import FlagContext, band_of, normalized
from tidegate.flags.report import OnError, Reporter
from tidegate.vocabulary import BAND_EDGES, CANARY, CONTROL, FLAGS, LAYERS, NO_COHORT, Unit

__all__ = ["UNIT_FIELDS", "Decision", "FlagProvider", "Gates", "ProviderHealth"]

UNIT_FIELDS: Final[Mapping[Unit, str]] = {"tenant": "tenantId", "user": "userId", "session": "sessionId"}
"""The context field, and so the stickiness, that stands for each unit."""

_NO_BAND: Final = "none"

_Labels = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderHealth:
    """How well a provider knows its flags.

    ready: it has a state to decide by.
    staleness: seconds since it last knew that the state was current; infinite before the first.
    detail: what is wrong, for a person; empty where nothing is.
    """

    ready: bool
    staleness: float
    detail: str


class FlagProvider(Protocol):
    """A source of flags: Unleash, a local file."""

    @property
    def version(self) -> int:
        """Grows after each change of the flags is in force; while it stands still, so do the answers."""
        ...

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        """Whether the flag is open for this context; False for a flag that is not known. Never waits."""
        ...

    def partly_open(self, flag: str) -> bool:
        """Whether the flag is open for some contexts and shut for others: the state that must not grow old."""
        ...

    def health(self) -> ProviderHealth:
        """How well the flags are known at this moment. Never waits."""
        ...

    async def start(self) -> None:
        """Begin to follow the flags. Never raises for a source that cannot be reached, and never waits for one long."""
        ...

    async def aclose(self) -> None:
        """Stop following them, within a bounded time. The last state stays in force."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the flags decided for one request.

    open: the layers whose gate is open.
    cohorts: for every flag (flag, band, cohort): the labels of its cohort counters.
    """

    open: frozenset[str]
    cohorts: tuple[_Labels, ...]


class Gates:
    """Decides for all flags at once and remembers the answer per context.

    provider: where the flags come from. Starting and closing it is its owner's business.
    flags: layer -> the flag that gates it; several layers may share one.
    unit: whom percentages are drawn over. Its context field (UNIT_FIELDS) always carries the context's unit.
    edges: upper edges of the bands in percent, ascending to 100. A unit's band in a flag is the first edge at or above
        its place, hashed with the flag's own name as the group, as the rollout's strategies do.
    max_units: how many decisions are remembered; the oldest goes first. One costs about 0.5 KiB.
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
        self._edges = tuple(edges)
        self._max_units = max_units
        self._max_staleness = max_staleness
        self._report = Reporter("flags", on_error)
        self._clock = clock
        self._unit_field = UNIT_FIELDS[unit]
        self._layers: dict[str, frozenset[str]] = {
            flag: frozenset(layer for layer, gate in self.flags.items() if gate == flag) for flag in self.flags.values()
        }
        self.nobody = Decision(open=frozenset(), cohorts=tuple((flag, _NO_BAND, NO_COHORT) for flag in self._layers))
        self._labels = {labels: labels for labels in self.label_combinations()}
        self._open_sets: dict[frozenset[str], frozenset[str]] = {}
        self._remembered: OrderedDict[object, Decision] = OrderedDict()
        self._version = -1
        self._stale = False
        self._look_again_at = -math.inf

    def label_combinations(self) -> tuple[_Labels, ...]:
        """Every (flag, band, cohort) that a decision can carry, so that the cohort counters can start at 0."""
        known = [
            (flag, str(edge), cohort) for flag in self._layers for edge in self._edges for cohort in (CANARY, CONTROL)
        ]
        return (*known, *self.nobody.cohorts)

    def decide(self, context: FlagContext) -> Decision:
        """What is open for this context. Never raises; whatever fails is shut and reported."""
        try:
            if self._clock() >= self._look_again_at or self._version != self._provider.version:
                self._renew()
            remembered = self._remembered
            found = remembered.get(context.key)
            return found if found is not None else self._decide(context.key, context, remembered)
        except Exception as error:  # noqa: BLE001 - P5: the app answers whatever the flags do; counted by on_error
            self._report(error)
            return self._shut(context.unit)

    def decide_for(self, tenant: str | None, user: str | None = None, session: str | None = None) -> Decision:
        """As `decide`, for a context that knows no more than these names. Quicker: it is built only when new."""
        try:
            if self._clock() >= self._look_again_at or self._version != self._provider.version:
                self._renew()
            remembered = self._remembered
            key = (tenant, user, session)
            found = remembered.get(key)
            return found if found is not None else self._decide(key, self._context(*key), remembered)
        except Exception as error:  # noqa: BLE001 - as in decide()
            self._report(error)
            return self._shut({"tenant": tenant, "user": user, "session": session}[self.unit])

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

    def _renew(self) -> None:
        """Forget what was remembered if the flags have changed, or their state has grown old or fresh again."""
        version = self._provider.version
        staleness = self.health().staleness
        stale = staleness > self._max_staleness
        # A state of this age cannot be too old before then; once it is, look often, so that fresh news counts.
        self._look_again_at = self._clock() + (0.25 if stale else max(self._max_staleness - staleness, 0.01))
        if version != self._version or stale != self._stale:
            self._stale = stale
            self._remembered = OrderedDict()
            self._version = version

    def _decide(self, key: object, context: FlagContext, remembered: OrderedDict[object, Decision]) -> Decision:
        # Into the memory that the caller looked in, never the current one: while this runs, another thread may have
        # put a new one in its place, for flags that this decision does not know.
        decision = self._evaluate(context)
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
        provider, stale = self._provider, self._stale
        layers: set[str] = set()
        cohorts: list[_Labels] = []
        for flag, gated in self._layers.items():
            is_open = provider.is_enabled(flag, context) and not (stale and provider.partly_open(flag))
            if is_open:
                layers |= gated
            cohorts.append(self._labels[flag, self._band(flag, unit), CANARY if is_open else CONTROL])
        opened = frozenset(layers)
        return Decision(open=self._open_sets.setdefault(opened, opened), cohorts=tuple(cohorts))

    def _shut(self, unit: str | None) -> Decision:
        if unit is None:
            return self.nobody
        cohorts = tuple(self._labels[flag, self._band(flag, unit), CONTROL] for flag in self._layers)
        return Decision(open=frozenset(), cohorts=cohorts)

    def _band(self, flag: str, unit: str) -> str:
        return band_of(normalized(flag, unit), self._edges)


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
