"""What the controller decides and does, tick by tick, in worlds that a test makes up."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.worlds import FLAG, START, Clock, MemoryActuator, SteadySource, make_spec
from tidegate.rollout.controller import LEASE_SECONDS, Controller, matches
from tidegate.rollout.machine import Event, State, after
from tidegate.rollout.records import Rollout
from tidegate.rollout.spec import RolloutSpec
from tidegate.rollout.store import Journal

FIRING = {"alertname": "HighErrorRate", "service": "api", "severity": "page"}


class World:
    """One journal, flag, source and clock; controllers come and go."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.flag = MemoryActuator()
        self.source = SteadySource()
        self.journal = Journal(path)
        # Hundreds of made-up seconds in one: durability is test_store's matter.
        self.journal._db.execute("PRAGMA synchronous=OFF")
        self.controller = self.new_controller()

    def new_controller(self, holder: str = "one") -> Controller:
        return Controller(journal=self.journal, actuator=self.flag, source=self.source, clock=self.clock, holder=holder)

    def start(self, spec: RolloutSpec | None = None) -> None:
        self.journal.add(spec or make_spec(), "production", self.clock())

    def attend(self) -> bool:
        return asyncio.run(self.controller.attend(wait=True))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Attend every second of the clock."""
        end = self.clock.now + seconds
        while self.clock.now < end and not until():
            self.attend()
            self.clock.now += 1

    def ask_slowly(self, asked: asyncio.Event, go_on: asyncio.Event) -> None:
        """From now on the source says that it was asked, and answers when it may go on."""
        answer = self.source.samples

        async def slow(*arguments: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await answer(*arguments)

        self.source.samples = slow  # type: ignore[method-assign]

    @property
    def rollout(self) -> Rollout:
        return self.journal.get("canary")

    @property
    def log(self) -> list[str]:
        return [entry.kind for entry in self.journal.entries(self.rollout.id, 1000)]

    def evidence(self, kind: str) -> dict[str, Any]:
        (found,) = [entry for entry in self.journal.entries(self.rollout.id, 1000) if entry.kind == kind]
        return dict(found.evidence)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.controller.metrics.registry.get_sample_value(f"tidegate_rollout_{name}", labels)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "journal.sqlite3")
    yield made
    made.journal.close()


def test_a_healthy_rollout_opens_step_by_step_and_is_done(world: World) -> None:
    world.start()
    world.run(300)
    assert world.flag.did == ["0 %", "on", "1 %", "10 %", "50 %"]
    assert world.rollout.state is State.DONE
    assert world.flag.enabled
    assert world.clock.now - START >= 3 * 60 + 30
    assert world.metric("state", rollout="canary", state="done") == 1
    assert world.metric("step_percent", rollout="canary") == 50


def test_every_change_is_journalled_before_and_after(world: World) -> None:
    world.start()
    seen: list[tuple[str, str, int | None]] = []

    def note(method: str) -> None:
        if method == "set_percentage":
            intent = world.rollout.intent
            seen.append((world.log[-1], intent.do if intent else "", intent.percent if intent else None))

    world.flag.before = note
    world.run(300)
    assert seen == [
        ("intent", "begin", 1), ("intent", "begin", 1), ("intent", "open", 10), ("intent", "open", 50),
    ]  # fmt: skip
    assert world.log.count("opened") == 3
    assert world.rollout.intent is None


def test_a_decision_carries_its_numbers(world: World) -> None:
    world.source.changes = {START + 100: {("canary", "errors"): 5.0}}
    world.start()
    world.run(300)
    evidence = world.evidence("bad")
    errors = evidence["verdicts"][0]
    assert errors["outcome"] == "bad"
    assert errors["ratio"] > 0.01
    assert errors["control"] == 0
    assert evidence["canary"]["errors"] > 0
    assert "errors in" in world.rollout.reason


@pytest.mark.parametrize(
    "change",
    [{("canary", "errors"): 5.0}, {("canary", "slow"): 5.0}, {("canary", "hits"): 1.0}],
    ids=["errors", "slow", "hit ratio"],
)
def test_a_missed_objective_shuts_the_flag_off_first_and_for_good(
    world: World, change: dict[tuple[str, str], float]
) -> None:
    world.source.changes = {START + 100: change}
    world.start()
    world.run(300)
    assert world.flag.did == ["0 %", "on", "1 %", "10 %", "off", "0 %"]
    assert world.rollout.state is State.ROLLED_BACK
    assert world.rollout.percent == 0
    assert [kind for kind in world.log if kind in ("bad", "shut")] == ["bad", "shut"]


def test_trouble_that_strikes_both_cohorts_holds_and_passes(world: World) -> None:
    both = {("canary", "errors"): 5.0, ("control", "errors"): 5.0}
    neither = {("canary", "errors"): 0.0, ("control", "errors"): 0.0}
    world.source.changes = {START + 90: both, START + 200: neither}
    world.start()
    world.run(110)
    assert (world.rollout.state, world.rollout.cause) == (State.HOLDING, "strikes_both")
    world.run(90)
    assert world.rollout.percent == 10
    world.run(400)
    assert world.rollout.state is State.DONE


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (lambda world: setattr(world.source, "fails", True), "metrics"),
        (lambda world: world.source.silent.append((START + 90, START + 500)), "no_data"),
        (lambda world: world.flag.fails.add("read"), "flag_unreadable"),
        (lambda world: world.flag.fails.add("set_percentage"), "flag_write"),
    ],
    ids=["metrics down", "no scrapes", "flag unreadable", "flag not writable"],
)
def test_an_outage_holds_says_so_once_and_goes_on_after(
    world: World, break_it: Callable[[World], None], cause: str
) -> None:
    world.start()
    world.run(90)
    assert world.rollout.percent == 10
    said = len(world.log)
    break_it(world)
    world.run(410)
    assert (world.rollout.state, world.rollout.cause, world.rollout.percent) == (State.HOLDING, cause, 10)
    # Without scrapes the evidence runs out by and by; every other outage is one episode, said once.
    episodes = world.log[said:].count("unknown")
    assert episodes == 1 or (cause == "no_data" and episodes <= 2)
    assert (world.metric("holds_total", rollout="canary", cause=cause) or 0) > 5
    world.source.fails = False
    world.flag.fails.clear()
    world.run(400)
    assert world.rollout.state is State.DONE


def test_no_traffic_neither_advances_nor_rolls_back(world: World) -> None:
    world.source.rates = dict.fromkeys(world.source.rates, 0.0)
    world.start()
    world.run(1000)
    assert (world.rollout.percent, world.rollout.state) == (1, State.HOLDING)
    assert "no requests from the canary" in world.rollout.reason


def test_the_warm_up_begins_anew_with_each_step_but_not_with_the_bake(world: World) -> None:
    cold = {("canary", "hits"): 0.0}
    warm = {("canary", "hits"): 9.0}
    opened = [START + at for at in (1, 60, 120)]
    world.source.changes = dict.fromkeys(opened, cold) | {at + 18: warm for at in opened}
    world.start()
    world.run(300)
    assert world.rollout.state is State.DONE
    baking = [entry for entry in world.journal.entries(world.rollout.id, 1000) if entry.went_to == "baking"]
    assert [entry.kind for entry in baking] == ["bake"]


@pytest.mark.parametrize("state", ["pending", "observing", "paused", "baking"])
def test_a_matching_alert_shuts_at_once_and_not_at_the_next_tick(world: World, state: str) -> None:
    world.start()
    if state == "pending":
        world.flag.fails.add("set_percentage")
    world.run(400, until=lambda: world.rollout.state == ("observing" if state == "paused" else state))
    world.attend()
    if state == "paused":
        world.journal.ask(world.rollout, "pause", "lunch", world.clock())
        world.attend()
    world.flag.fails.clear()
    assert world.rollout.state == state
    assert asyncio.run(world.controller.alert(FIRING)) == ["canary"]
    assert world.rollout.state is State.ROLLED_BACK
    assert not world.flag.enabled
    assert "alertname=HighErrorRate" in world.rollout.reason


@pytest.mark.parametrize("labels", [{"alertname": "HighErrorRate"}, {"alertname": "Other", "service": "api"}, {}])
def test_an_alert_that_lacks_a_label_changes_nothing(world: World, labels: dict[str, str]) -> None:
    world.start()
    world.run(30)
    assert asyncio.run(world.controller.alert(labels)) == []
    assert world.flag.enabled
    assert not matches(make_spec().alerts, labels)


def test_an_alert_during_a_slow_query_does_not_wait_for_it(world: World) -> None:
    world.start()
    world.run(30)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        world.ask_slowly(asked, go_on)
        world.clock.now += 10
        ticking = asyncio.create_task(world.controller.attend(wait=True))
        await asyncio.wait_for(asked.wait(), 5)
        await asyncio.wait_for(world.controller.alert(FIRING), 5)
        assert not world.flag.enabled
        go_on.set()
        await ticking

    asyncio.run(scenario())
    assert world.rollout.state is State.ROLLED_BACK
    assert world.flag.did[-2:] == ["off", "0 %"]


def test_a_verdict_on_what_was_before_a_resume_does_not_count(world: World) -> None:
    """A tick is asking while a person pauses and resumes: its bad verdict is about a step that began anew."""
    world.source.changes = {START + 25: {("canary", "errors"): 5.0}}
    world.start()
    world.run(29)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        world.ask_slowly(asked, go_on)
        world.clock.now = START + 40
        ticking = asyncio.create_task(world.controller.attend(wait=True))
        await asyncio.wait_for(asked.wait(), 5)
        for command in ("pause", "resume"):
            number = world.journal.ask(world.rollout, command, command, world.clock())
            while world.journal.answered(number) is None:
                await asyncio.wait_for(world.controller.attend(), 5)
                await asyncio.sleep(0)
        go_on.set()
        await ticking

    asyncio.run(scenario())
    assert (world.rollout.state, world.rollout.reason) == (State.OBSERVING, "resume")
    assert world.flag.enabled
    assert world.metric("errors_total", component="controller") == 0


def test_a_flag_that_cannot_be_shut_is_tried_again_every_second(world: World) -> None:
    world.start()
    world.run(30)
    world.flag.fails.add("disable")
    asyncio.run(world.controller.alert(FIRING))
    world.run(5)
    assert world.rollout.state is State.ROLLING_BACK
    assert world.flag.enabled
    assert "not shut yet" in world.rollout.reason
    world.flag.fails.clear()
    world.run(2)
    assert world.rollout.state is State.ROLLED_BACK
    assert world.rollout.reason.startswith("alert ")
    assert world.log.count("unknown") == 1 + world.log[: world.log.index("alert")].count("unknown")


@pytest.mark.parametrize(
    ("enabled", "percentage", "told"), [(True, 25, "on at 25 %"), (False, 1, "off at 1 %"), (True, None, "on at ? %")]
)
def test_a_persons_edit_pauses_the_rollout_names_them_and_is_not_fought(
    world: World, enabled: bool, percentage: int | None, told: str
) -> None:
    world.start()
    world.run(30)
    world.flag.enabled, world.flag.percentage, world.flag.editor = enabled, percentage, "ann@example.com at noon"
    did = list(world.flag.did)
    world.run(200)
    assert world.rollout.state is State.PAUSED
    assert world.rollout.reason == f"the flag is {told}, left as on at 1 %: edited by ann@example.com at noon"
    assert world.flag.did == did


def test_an_edit_by_nobody_known_pauses_too(world: World) -> None:
    world.start()
    world.run(30)
    world.flag.percentage = 2
    world.flag.fails.add("last_editor")
    world.run(20)
    assert world.rollout.reason.endswith("edited by somebody")


def test_pause_and_resume_go_on_at_the_same_step_with_a_new_dwell(world: World) -> None:
    world.start()
    world.run(30)
    world.journal.ask(world.rollout, "pause", "lunch", world.clock())
    world.run(500)
    assert (world.rollout.state, world.rollout.percent, world.rollout.reason) == (State.PAUSED, 1, "lunch")
    world.journal.ask(world.rollout, "resume", "back", world.clock())
    world.attend()
    resumed = world.clock.now
    assert world.rollout.entered == resumed
    world.run(59)
    assert world.rollout.percent == 1
    world.run(300)
    assert world.rollout.state is State.DONE


def test_resume_leaves_a_flag_off_that_a_person_turned_off(world: World) -> None:
    world.start()
    world.run(30)
    world.flag.enabled = False
    world.run(20)
    number = world.journal.ask(world.rollout, "resume", "back", world.clock())
    world.attend()
    assert "only start turns it on" in (world.journal.answered(number) or "")
    assert not world.flag.enabled
    assert world.rollout.state is State.PAUSED


@pytest.mark.parametrize("seconds", [0, 30, 195])
def test_an_abort_shuts_the_flag_within_one_look(world: World, seconds: float) -> None:
    world.start()
    world.run(seconds)
    number = world.journal.ask(world.rollout, "abort", "changed my mind", world.clock())
    world.attend()
    assert world.journal.answered(number) == "aborted"
    assert (world.rollout.state, world.rollout.reason) == (State.ABORTED, "changed my mind")
    assert not world.flag.enabled
    world.run(100)
    assert not world.flag.enabled


def test_a_command_that_cannot_be_is_refused_with_the_reason(world: World) -> None:
    world.start()
    world.run(30)
    number = world.journal.ask(world.rollout, "resume", "", world.clock())
    world.attend()
    assert "cannot take resume" in (world.journal.answered(number) or "")


def test_a_kill_in_the_instant_in_which_the_flag_is_turned_on_wins(world: World) -> None:
    world.start()

    def kill(method: str) -> None:
        if method == "enable":
            world.flag.before = lambda method: None
            rollout = world.rollout
            state = after(rollout.state, Event.STOPPED)
            world.journal.record(replace(rollout, state=state, intent=None), "stopped", now=world.clock())

    world.flag.before = kill
    world.run(3)
    assert world.rollout.state is State.ABORTED
    assert not world.flag.enabled


def test_a_kill_in_that_instant_holds_though_the_flag_cannot_be_shut_again(world: World) -> None:
    world.start()

    def kill(method: str) -> None:
        if method == "enable":
            world.flag.before = lambda method: None
            world.flag.fails = {"disable"}
            rollout = world.rollout
            state = after(rollout.state, Event.STOPPED)
            world.journal.record(replace(rollout, state=state, intent=None), "stopped", now=world.clock())

    world.flag.before = kill
    world.run(3)
    assert world.rollout.state is State.ABORTED
    assert world.flag.percentage == 0, "on, but open to nobody"


def test_one_failing_rollout_does_not_stop_the_others(world: World) -> None:
    world.start()
    world.start(make_spec(name="other", flag="tidegate.etag"))
    read = world.flag.read

    async def broken(flag: str, environment: str) -> Any:
        if flag == FLAG:
            raise RuntimeError("a bug")
        return await read(flag, environment)

    world.run(5)
    world.flag.read = broken  # type: ignore[method-assign]
    world.run(40)
    assert world.journal.get("other").latest["at"] > START + 20
    assert (world.metric("errors_total", component="controller") or 0) >= 1


def test_a_second_controller_waits_until_the_lease_ends(world: World) -> None:
    world.start()
    world.run(30)
    second = world.new_controller("two")
    assert asyncio.run(second.attend(wait=True)) is False
    world.clock.now += LEASE_SECONDS + 1
    assert asyncio.run(second.attend(wait=True)) is True
    assert world.attend() is False


def test_two_controllers_of_one_process_number_on_one_host_do_not_both_lead(world: World) -> None:
    def controller() -> Controller:
        return Controller(journal=world.journal, actuator=world.flag, source=world.source, clock=world.clock)

    one, other = controller(), controller()
    assert [asyncio.run(each.attend(wait=True)) for each in (one, other)] == [True, False]


def test_a_clock_that_is_set_back_does_not_put_off_shutting(world: World) -> None:
    world.start()
    world.run(5)
    world.flag.fails = {"all"}
    asyncio.run(world.controller.alert(FIRING))
    world.attend()
    assert world.rollout.state is State.ROLLING_BACK
    world.flag.fails = set()
    world.clock.now -= 3600
    world.attend()
    assert world.rollout.state is State.ROLLED_BACK


def test_a_controller_without_the_lease_leaves_an_alert_to_the_one_that_has_it(world: World) -> None:
    world.start()
    world.run(30)
    second = world.new_controller("two")
    asyncio.run(second.attend(wait=True))
    assert asyncio.run(second.alert(FIRING)) == ["canary"]
    assert world.flag.enabled
    world.attend()
    assert world.rollout.state is State.ROLLED_BACK


def test_a_former_leader_does_nothing_itself_and_leaves_an_alert_to_the_leader(world: World) -> None:
    world.start()
    world.run(30)
    second = world.new_controller("two")
    world.clock.now += LEASE_SECONDS + 1
    asyncio.run(second.attend(wait=True))
    did = list(world.flag.did)
    assert asyncio.run(world.controller.alert(FIRING)) == ["canary"]
    assert world.flag.did == did
    assert not world.controller.leading
    asyncio.run(second.attend(wait=True))
    assert world.rollout.state is State.ROLLED_BACK


def test_a_command_that_meets_a_bug_is_answered_once(world: World) -> None:
    world.start()
    world.run(30)
    world.journal.ask(world.rollout, "pause", "", world.clock())
    world.attend()

    async def broken(flag: str, environment: str) -> Any:
        raise ZeroDivisionError("a bug")

    world.flag.read = broken  # type: ignore[method-assign]
    number = world.journal.ask(world.rollout, "resume", "", world.clock())
    world.run(3)
    assert "it failed" in (world.journal.answered(number) or "")
    assert world.metric("errors_total", component="controller") == 1


def test_a_closed_controller_gives_the_lease_back_at_once(world: World) -> None:
    world.attend()
    asyncio.run(world.controller.close())
    assert asyncio.run(world.new_controller("two").attend(wait=True)) is True


def test_a_write_that_the_service_did_late_is_taken_for_our_own(world: World) -> None:
    """set_percentage timed out here and came through there: that is no person's edit."""
    world.start()
    world.run(55)
    world.flag.fails.add("set_percentage")
    world.run(30)
    assert world.rollout.cause == "flag_write"
    world.flag.percentage = 10
    world.run(10)
    assert (world.rollout.percent, world.rollout.step) == (10, 1)
    assert world.rollout.state in (State.OBSERVING, State.HOLDING)
