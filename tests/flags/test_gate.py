"""One decision a request for all flags: what it holds, how long it is remembered, and when it is shut."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigError
from tidegate.flags import FlagContext, Gates, ProviderHealth, Reach, band_of, normalized
from tidegate.flags.usage import Usage
from tidegate.vocabulary import BAND_EDGES, FLAGS

CACHE, ETAG = FLAGS["cache"], FLAGS["etag"]
EVERY = dict.fromkeys(FLAGS, 100)


class Provider:
    """A provider by the book whose flags a test sets; it notes what it is asked."""

    def __init__(self, **percentages: int) -> None:
        self.version = 1
        self.staleness = 0.0
        self.percentages = {f"tidegate.{layer}": percentage for layer, percentage in percentages.items()}
        self.asked: list[tuple[str, FlagContext]] = []
        self.fails = False

    def set(self, **percentages: int) -> None:
        self.percentages |= {f"tidegate.{layer}": percentage for layer, percentage in percentages.items()}
        self.version += 1

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        self.asked.append((flag, context))
        if self.fails:
            raise RuntimeError("the engine broke")
        value = context.properties.get("tenantId")
        return value is not None and normalized(flag, value) <= self.percentages.get(flag, 0)

    def reach(self, flag: str) -> Reach:
        percentage = self.percentages.get(flag, 0)
        return "nobody" if percentage == 0 else "everybody" if percentage == 100 else "some"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=self.version > 0, staleness=self.staleness, detail="")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Errors:
    """An on_error that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Exception]] = []

    def __call__(self, component: str, error: Exception) -> None:
        self.seen.append((component, error))


def tenant(name: str, **properties: str) -> FlagContext:
    return FlagContext(unit=name, properties={"tenantId": name, **properties})


class Varied(Provider):
    """A provider that opens some flags under a variant."""

    def __init__(self, variants: Mapping[str, str], **percentages: int) -> None:
        super().__init__(**percentages)
        self.variants = variants

    def open_as(self, flag: str, context: FlagContext) -> str | None:
        return self.variants.get(flag, "") if self.is_enabled(flag, context) else None


def test_a_flag_that_is_open_as_shadow_puts_its_layers_in_shadow_and_other_variants_mean_nothing() -> None:
    provider = Varied({CACHE: "shadow", ETAG: "blue"}, cache=100, etag=100, coalesce=100)
    decision = Gates(provider).decide(tenant("acme"))
    assert decision.open == {"cache", "etag", "coalesce"}
    assert decision.shadow == {"cache"}
    assert {flag: cohort for flag, _, cohort in decision.cohorts}[CACHE] == "canary"


def test_a_flag_that_is_shut_shadows_nothing_and_who_opened_it_again_is_asked_anew() -> None:
    provider = Varied({CACHE: "shadow"}, cache=0)
    gates = Gates(provider)
    assert gates.decide(tenant("acme")).shadow == gates.nobody.shadow == frozenset()
    provider.set(cache=100)
    assert gates.decide(tenant("acme")).shadow == {"cache"}
    provider.variants = {}
    provider.set(cache=100)
    assert (gates.decide(tenant("acme")).open, gates.decide(tenant("acme")).shadow) == ({"cache"}, frozenset())


def test_a_decision_names_the_open_layers_and_labels_every_flag() -> None:
    gates = Gates(Provider(cache=100, etag=0))
    decision = gates.decide(tenant("acme"))
    assert decision.open == {"cache"}
    assert decision.cohorts == tuple(
        (flag, band_of(normalized(flag, "acme")), "canary" if flag == CACHE else "control") for flag in FLAGS.values()
    )


def test_all_flags_are_decided_once_per_unit() -> None:
    provider = Provider(**EVERY)
    gates = Gates(provider)
    first = gates.decide(tenant("acme"))
    assert [flag for flag, _ in provider.asked] == list(FLAGS.values())
    assert gates.decide(tenant("acme")) is first
    assert gates.decide_for("globex") is gates.decide_for("globex")
    assert len(provider.asked) == 2 * len(FLAGS)


def test_other_properties_of_the_same_unit_are_another_decision() -> None:
    provider = Provider(**EVERY)
    gates = Gates(provider)
    gates.decide(tenant("acme", region="eu"))
    gates.decide(tenant("acme", region="us"))
    gates.decide_for("acme", "ann")
    gates.decide_for("acme", "bob")
    assert len(provider.asked) == 4 * len(FLAGS)


def test_decide_for_says_what_decide_says() -> None:
    provider = Provider(cache=50)
    gates = Gates(provider)
    for number in range(50):
        assert gates.decide_for(f"t{number}", "ann") == gates.decide(tenant(f"t{number}", userId="ann"))


@pytest.mark.parametrize(
    ("unit", "field", "value"), [("tenant", "tenantId", "t"), ("user", "userId", "u"), ("session", "sessionId", "s")]
)
def test_the_unit_s_field_carries_the_unit(unit: str, field: str, value: str) -> None:
    provider = Provider(**EVERY)
    gates = Gates(provider, unit=unit)  # type: ignore[arg-type]
    gates.decide_for("t", "u", "s")
    gates.decide(FlagContext(unit=value))
    gates.decide(FlagContext(unit=value, properties={field: "somebody else"}))
    assert [context.properties[field] for _, context in provider.asked] == [value] * (3 * len(FLAGS))
    assert [context.unit for _, context in provider.asked] == [value] * (3 * len(FLAGS))


def test_without_a_unit_everything_is_shut_and_judged_by_nobody() -> None:
    provider = Provider(**dict.fromkeys(FLAGS, 100))
    gates = Gates(provider)
    for decision in (gates.decide(FlagContext(unit=None)), gates.decide_for(None, "ann")):
        assert decision.open == frozenset()
        assert decision.cohorts == tuple((flag, "none", "none") for flag in FLAGS.values())
    assert provider.asked == []


def test_a_user_gate_is_shut_for_a_tenant_whose_user_is_unknown() -> None:
    assert Gates(Provider(cache=100), unit="user").decide_for("acme").cohorts[0] == (FLAGS["telemetry"], "none", "none")


def test_a_new_version_of_the_flags_takes_effect_at_the_next_decision() -> None:
    provider = Provider(cache=0)
    one, other = Gates(provider), Gates(provider)
    for percentage, is_open in ((0, frozenset[str]()), (100, {"cache"}), (0, frozenset[str]())):
        provider.set(cache=percentage)
        assert one.decide_for("acme").open == is_open
        assert other.decide(tenant("acme")).open == is_open


def test_a_change_in_mid_decision_is_not_remembered_as_the_old_flags() -> None:
    """The state changes between the look at the version and the answer, as a poll in another thread may do."""

    class Racing(Provider):
        def is_enabled(self, flag: str, context: FlagContext) -> bool:
            before = super().is_enabled(flag, context)
            if flag == ETAG and self.version == 1:
                self.set(cache=100)
            return before

    gates = Gates(Racing(cache=50, etag=100))
    assert gates.decide_for("acme").open == {"etag"}
    assert gates.decide_for("acme").open == {"cache", "etag"}


@pytest.mark.parametrize("staleness", [math.nan, math.inf])
def test_a_state_whose_age_cannot_be_told_opens_nothing_for_some(staleness: float) -> None:
    provider = Provider(cache=99, etag=100)
    provider.staleness = staleness
    gates = Gates(provider)
    assert {frozenset(gates.decide_for(str(number)).open) for number in range(50)} == {frozenset({"etag"})}


def test_names_that_are_too_long_are_decided_alike_and_never_remembered() -> None:
    gates = Gates(Provider(**EVERY))
    for number in range(20):
        long = f"{number}{'x' * 60_000}"
        assert gates.decide_for("acme", session=long).open == frozenset(FLAGS)
        context = FlagContext(unit="acme", properties={"tenantId": "acme", "sessionId": long})
        assert gates.decide(context).open == frozenset(FLAGS)
    assert not gates._remembered
    gates.decide_for("acme", session="short")
    assert len(gates._remembered) == 1


def test_a_unit_whose_name_is_too_long_is_remembered_nowhere() -> None:
    gates = Gates(Provider(**EVERY), unit="session")
    for number in range(20):
        long = f"{number}{'x' * 60_000}"
        context = FlagContext(unit=long, properties={"tenantId": "acme", "sessionId": long})
        assert gates.decide(context).open == gates.decide_for("acme", session=long).open == frozenset(FLAGS)
    assert not [each for each in gates._equals if "xxx" in repr(each)]
    for name in ("short", "short"):
        gates.decide_for("acme", name, session="short")
    assert ("short", gates.decide_for("acme", session="short")) in gates._equals


def test_the_memory_is_bounded_and_lets_the_oldest_go() -> None:
    provider = Provider(**EVERY)
    gates = Gates(provider, max_units=3)
    for name in ("a", "b", "c", "d"):
        gates.decide_for(name)
    assert len(gates._remembered) == 3
    asked = len(provider.asked)
    for name in ("b", "c", "d"):
        gates.decide_for(name)
    assert len(provider.asked) == asked
    gates.decide_for("a")
    assert len(provider.asked) == asked + len(FLAGS)
    for number in range(1000):
        gates.decide(tenant(f"t{number}"))
        assert len(gates._remembered) == 3


def test_what_is_decided_alike_for_users_of_one_tenant_is_one_decision_and_equal_cohorts_are_one_object() -> None:
    gates = Gates(Provider(cache=100))
    decisions = [gates.decide_for(f"t{number}", user) for number in range(300) for user in ("ann", "bob")]
    assert all(decisions[at] is decisions[at + 1] for at in range(0, 600, 2))
    assert [decision.unit for decision in decisions[::2]] == [f"t{number}" for number in range(300)]
    cohorts = [decision.cohorts for decision in decisions]
    assert len({id(each) for each in cohorts}) == len(set(cohorts)) < 300
    assert len({id(decision.open) for decision in decisions}) == 1
    assert all(gates._labels[label] is label for each in cohorts for label in each)


def test_as_many_decisions_are_remembered_as_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.flags.gate._EQUALS", 4)
    gates = Gates(Provider(cache=30))
    decisions = [gates.decide_for(f"t{number // 2}", f"u{number % 2}") for number in range(200)]
    assert all(decisions[at] is decisions[at + 1] for at in range(0, 200, 2))
    assert len(gates._equals) <= 4


def test_a_provider_that_raises_is_shut_reported_and_asked_again() -> None:
    provider, errors = Provider(cache=100), Errors()
    gates = Gates(provider, on_error=errors)
    provider.fails = True
    decision = gates.decide(tenant("acme"))
    assert decision.open == frozenset()
    assert {cohort for _, _, cohort in decision.cohorts} == {"control"}
    assert gates.decide_for("acme").open == frozenset()
    assert gates.decide_for(None) == gates.nobody
    assert [(component, str(error)) for component, error in errors.seen] == [("flags", "the engine broke")] * 2
    provider.fails = False
    assert gates.decide(tenant("acme")).open == {"cache"}


def test_a_provider_whose_health_fails_counts_as_too_old() -> None:
    class Sick(Provider):
        def health(self) -> ProviderHealth:
            raise RuntimeError("no health")

    errors = Errors()
    gates = Gates(Sick(cache=50, etag=100), on_error=errors)
    assert gates.decide_for("acme").open == {"etag"}
    assert gates.health() == ProviderHealth(ready=False, staleness=math.inf, detail="RuntimeError: no health")
    assert {str(error) for _, error in errors.seen} == {"no health"}


def test_a_partly_open_flag_shuts_at_60_seconds_and_a_fully_open_one_stays() -> None:
    provider, clock = Provider(cache=99, etag=100), Clock()
    gates = Gates(provider, clock=clock)
    inside = next(name for name in map(str, range(100)) if normalized(CACHE, name) <= 99)
    for seconds in (0.0, 30.0, 59.9, 60.0):
        clock.now, provider.staleness = 1000.0 + seconds, seconds
        assert gates.decide_for(inside).open == {"cache", "etag"}
    clock.now, provider.staleness = 1060.1, 60.1
    gates.refresh()
    decision = gates.decide_for(inside)
    assert decision.open == {"etag"}
    assert (CACHE, band_of(normalized(CACHE, inside)), "control") in decision.cohorts
    clock.now, provider.staleness = 1061.0, 0.5
    gates.refresh()
    assert gates.decide_for(inside).open == {"cache", "etag"}


@pytest.mark.parametrize("by_name", [True, False])
def test_old_news_shut_within_16_decisions_where_nobody_refreshes(by_name: bool) -> None:
    provider, clock = Provider(cache=99), Clock()
    gates = Gates(provider, clock=clock)
    inside = next(name for name in map(str, range(100)) if normalized(CACHE, name) <= 99)

    def decided() -> bool:
        return bool((gates.decide_for(inside) if by_name else gates.decide(tenant(inside))).open)

    assert decided()
    clock.now, provider.staleness = 1060.1, 60.1
    answers = [decided() for _ in range(40)]
    assert answers.index(False) < 16
    assert not any(answers[16:])


def test_old_news_shut_within_max_staleness_of_the_last_answer_however_seldom_one_looks() -> None:
    """Looks 7 s apart, a provider that answered last at second 20."""
    provider, clock = Provider(cache=100), Clock()
    provider.reach = lambda flag: "some"  # type: ignore[method-assign]
    gates = Gates(provider, clock=clock, max_staleness=30)
    opened = []
    for seconds in range(0, 120, 7):
        clock.now, provider.staleness = 1000.0 + seconds, max(0.0, seconds - 20.0)
        gates.refresh()
        if gates.decide_for("acme").open:
            opened.append(seconds)
    assert opened == [seconds for seconds in range(0, 120, 7) if seconds <= 50]


def test_layers_that_share_a_flag_open_together_and_are_counted_once() -> None:
    provider = Provider(cache=100)
    gates = Gates(provider, flags={"cache": CACHE, "coalesce": CACHE})
    decision = gates.decide_for("acme")
    assert decision.open == {"cache", "coalesce"}
    assert [flag for flag, _, _ in decision.cohorts] == [CACHE]
    assert len(provider.asked) == 1


class Stopped:
    """Stop records that a test sets."""

    def __init__(self, *flags: str, known: bool = True) -> None:
        self.version = 0
        self.known = known
        self.flags = set(flags)

    def set(self, *flags: str, known: bool = True) -> None:
        self.flags, self.known = set(flags), known
        self.version += 1

    def stopped(self, flag: str) -> bool:
        return flag in self.flags

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


def test_a_stopped_flag_is_shut_for_everybody_who_is_then_control() -> None:
    provider, stops = Provider(cache=100, etag=100), Stopped(CACHE)
    gates = Gates(provider, stops=stops)
    decision = gates.decide_for("acme")
    assert decision.open == {"etag"}
    assert (CACHE, band_of(normalized(CACHE, "acme")), "control") in decision.cohorts
    assert (gates.reach("cache"), gates.reach("etag")) == ("nobody", "everybody")
    assert CACHE not in {flag for flag, _ in provider.asked}
    stops.set()
    assert gates.decide_for("acme").open == {"cache", "etag"}
    stops.set(ETAG)
    assert gates.decide_for("acme").open == {"cache"}


def test_every_flag_is_shut_until_it_is_known_which_are_stopped() -> None:
    stops = Stopped(known=False)
    gates = Gates(Provider(cache=100), stops=stops)
    assert gates.decide_for("acme").open == frozenset()
    assert gates.reach("cache") == "nobody"
    stops.set(known=True)
    assert gates.decide_for("acme").open == {"cache"}


def test_the_reach_of_a_layer_is_that_of_its_flag_with_stops_and_age_applied() -> None:
    provider, stops, clock = Provider(cache=50, etag=100), Stopped(), Clock()
    gates = Gates(provider, stops=stops, flags={"cache": CACHE, "etag": ETAG, "coalesce": CACHE}, clock=clock)
    layers = ("cache", "coalesce", "etag", "breaker")
    assert [gates.reach(layer) for layer in layers] == ["some", "some", "everybody", "nobody"]
    clock.now, provider.staleness = 1060.1, 60.1
    assert [gates.reach(layer) for layer in layers] == ["nobody", "nobody", "everybody", "nobody"]
    stops.set(ETAG)
    assert [gates.reach(layer) for layer in layers] == ["nobody"] * 4


def test_subscribers_hear_of_the_first_state_of_each_change_of_reach_and_of_nothing_else() -> None:
    provider, stops, clock = Provider(cache=0), Stopped(), Clock()
    gates = Gates(provider, stops=stops, flags={"cache": CACHE, "etag": ETAG}, clock=clock)
    heard: list[tuple[dict[str, str], dict[str, str]]] = []
    gates.subscribe(lambda before, after: heard.append((dict(before), dict(after))))
    steps: list[tuple[Callable[[], object], tuple[str, str]]] = [
        (lambda: None, ("nobody", "nobody")),
        (lambda: provider.set(cache=10), ("some", "nobody")),
        (lambda: provider.set(cache=20), ("some", "nobody")),
        (lambda: provider.set(cache=100, etag=1), ("everybody", "some")),
        (lambda: stops.set(CACHE), ("nobody", "some")),
        (lambda: stops.set(), ("everybody", "some")),
        (lambda: setattr(clock, "now", 2000) or setattr(provider, "staleness", 61.0), ("everybody", "nobody")),
        (lambda: setattr(clock, "now", 2001) or setattr(provider, "staleness", 0.0), ("everybody", "some")),
    ]
    states = [("nobody", "nobody")]
    for step, state in steps:
        step()
        gates.refresh()
        gates.refresh()
        states.append(state)
    changes = [(old, new) for old, new in pairwise(states) if old != new]
    first = (("nobody", "nobody"), ("nobody", "nobody"))
    assert [(tuple(old.values()), tuple(new.values())) for old, new in heard] == [first, *changes]
    assert len(changes) == 6


@pytest.mark.parametrize("percentage", [0, 50])
def test_the_flags_are_known_once_provider_and_stops_are_and_subscribers_hear_of_it(percentage: int) -> None:
    provider, stops = Provider(), Stopped(known=False)
    provider.version = 0
    gates = Gates(provider, stops=stops)
    heard: list[tuple[bool, Reach]] = []
    gates.subscribe(lambda before, after: heard.append((gates.known, after["cache"])))
    gates.refresh()
    stops.set(known=True)
    gates.refresh()
    assert (gates.known, heard) == (False, [])
    provider.set(cache=percentage)
    gates.refresh()
    assert (gates.known, heard) == (True, [(True, "some" if percentage else "nobody")])
    provider.version = 0
    gates.refresh()
    assert gates.known, "it was, and the last state stays in force"


def test_a_layer_has_shut_before_the_subscribers_hear_of_it_and_opens_after_them() -> None:
    provider = Provider(cache=100, etag=0)
    gates = Gates(provider)
    gates.refresh()
    seen: list[tuple[set[str], str, str]] = []

    def heard(before: Mapping[str, Reach], after: Mapping[str, Reach]) -> None:
        # By another unit, so that nothing that was decided in between is remembered.
        seen.append((set(gates.decide_for("acme").open), gates.reach("cache"), gates.reach("etag")))

    gates.subscribe(heard)
    provider.set(cache=0, etag=100)
    assert gates.decide_for("globex").open == {"etag"}
    assert seen == [(set(), "nobody", "nobody")]
    assert gates.decide_for("acme").open == {"etag"}


def test_a_state_that_the_subscribers_have_not_heard_of_opens_nothing() -> None:
    """A provider answers by its new state a moment before it says that there is one."""
    provider = Provider(cache=0)
    gates = Gates(provider)
    gates.refresh()
    provider.percentages[CACHE] = 100
    assert gates.decide_for("acme").open == frozenset()
    provider.version += 1
    assert gates.decide_for("acme").open == {"cache"}


def test_a_subscriber_that_raises_is_reported_and_the_others_hear() -> None:
    errors = Errors()
    gates = Gates(Provider(cache=100), on_error=errors)
    heard: list[object] = []

    def broken(before: Mapping[str, Reach], after: Mapping[str, Reach]) -> None:
        raise RuntimeError("no time")

    gates.subscribe(broken)
    gates.subscribe(lambda before, after: heard.append(after))
    assert gates.decide_for("acme").open == {"cache"}
    assert len(heard) == 1
    assert [(component, str(error)) for component, error in errors.seen] == [("flags", "no time")]


def test_a_provider_that_cannot_tell_whom_it_admits_is_shut_and_asked_again() -> None:
    provider, errors = Provider(cache=100), Errors()
    gates = Gates(provider, on_error=errors)
    told, provider.reach = provider.reach, lambda flag: 1 // 0  # type: ignore[assignment,method-assign,return-value]
    assert gates.decide_for("acme").open == frozenset()
    assert gates.reach("cache") == "nobody"
    assert not gates.refresh()
    assert len(errors.seen) == 3
    provider.reach = told  # type: ignore[method-assign]
    assert gates.reach("cache") == "everybody"
    assert gates.decide_for("acme").open == {"cache"}


def test_every_decision_counts_in_the_usage_of_every_flag_whatever_becomes_of_its_memory() -> None:
    provider = Provider(cache=100)
    gates = Gates(provider, max_units=3, flags={"cache": CACHE, "coalesce": CACHE, "etag": ETAG})
    decisions: list[Callable[[], object]] = [
        *[lambda: gates.decide_for("acme")] * 3,  # remembered
        *[lambda number=number: gates.decide(tenant(f"t{number}")) for number in range(10)],  # evicted
        lambda: provider.set(cache=0),
        *[lambda: gates.decide_for("acme")] * 4,  # superseded
        lambda: provider.set(cache=100, etag=100),
        lambda: gates.decide_for(None),  # nobody is known
        lambda: gates.decide_for("acme"),
        lambda: setattr(provider, "fails", True),
        lambda: gates.decide_for("globex"),  # shut, because the provider fails
        lambda: gates.decide(tenant("globex")),
    ]
    for decide in decisions:
        decide()
    assert gates.usage.counts() == {CACHE: (14, 7), ETAG: (1, 20)}


class Reporting(Provider):
    """A provider whose service wants to know the usage."""

    def __init__(self, **percentages: int) -> None:
        super().__init__(**percentages)
        self.usages: list[Usage] = []

    def report_usage(self, usage: Usage) -> None:
        self.usages.append(usage)


def test_a_provider_that_reports_usage_is_given_that_of_each_gates() -> None:
    provider = Reporting(cache=100)
    one, other = Gates(provider), Gates(provider)
    one.decide_for("acme")
    other.decide_for("acme")
    other.decide_for("acme")
    assert [usage.counts()[CACHE] for usage in provider.usages] == [(1, 0), (2, 0)]


units = st.none() | st.text(max_size=4)


@given(name=units, percentages=st.dictionaries(st.sampled_from(list(FLAGS)), st.integers(0, 100)), stale=st.booleans())
def test_every_label_of_a_decision_is_among_the_combinations(
    name: str | None, percentages: dict[str, int], stale: bool
) -> None:
    provider = Provider(**percentages)
    provider.staleness = 100 if stale else 0
    gates = Gates(provider)
    combinations = gates.label_combinations()
    decision = gates.decide_for(name)
    assert set(decision.cohorts) <= set(combinations)
    assert len(decision.cohorts) == len(FLAGS)
    assert len(combinations) == len(set(combinations)) == len(FLAGS) * (len(BAND_EDGES) * 2 + 1)


@given(name=st.text(max_size=4), smaller=st.integers(0, 100), larger=st.integers(0, 100))
def test_a_unit_that_is_in_stays_in_as_the_percentage_grows_and_keeps_its_band(
    name: str, smaller: int, larger: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    before, after = Gates(Provider(cache=smaller)).decide_for(name), Gates(Provider(cache=larger)).decide_for(name)
    assert before.open <= after.open
    assert [band for _, band, _ in before.cohorts] == [band for _, band, _ in after.cohorts]


def test_every_argument_that_cannot_be_used_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Gates(
            Provider(),
            flags={"cahce": CACHE, "etag": ""},
            unit="planet",  # type: ignore[arg-type]
            edges=(5, 1, 50),
            max_units=0,
            max_staleness=0,
        )
    assert [problem.path for problem in caught.value.problems] == [
        "flags['cahce']",
        "flags['etag']",
        "unit",
        "edges",
        "max_units",
        "max_staleness",
    ]
