"""The circuit breaker, driven as its users drive it: admit, await, report."""

import asyncio
import random

import pytest
from prometheus_client import CollectorRegistry

from tidegate.middleware.breaker import Breaker, State, Ticket, report_to
from tidegate.middleware.core.breaker import BreakerSettings
from tidegate.middleware.metrics import Metrics

SETTINGS = BreakerSettings(consecutive=3, failure_rate=0.5, window=10.0, minimum=10, open_for=5.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(settings: BreakerSettings = SETTINGS) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(settings, clock=clock), clock


def admitted(breaker: Breaker) -> Ticket:
    ticket = breaker.admit()
    assert ticket is not None
    return ticket


def end(breaker: Breaker, *outcomes: bool) -> None:
    for failed in outcomes:
        breaker.report(admitted(breaker), failed=failed)


def opened(settings: BreakerSettings = SETTINGS) -> tuple[Breaker, Clock]:
    breaker, clock = made(settings)
    end(breaker, *[True] * settings.consecutive)
    assert breaker.state == "open"
    return breaker, clock


def half_open() -> tuple[Breaker, Clock, Ticket]:
    breaker, clock = opened()
    clock.now += 5.0
    probe = admitted(breaker)
    assert breaker.state == "half-open"
    return breaker, clock, probe


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_count_anew() -> None:
    breaker, _ = made()
    end(breaker, True, True, False, True, True)
    assert breaker.state == "closed"
    end(breaker, True)
    assert breaker.state == "open"


def test_a_failure_rate_opens_it_although_no_two_failures_follow_each_other() -> None:
    breaker, _ = made()
    end(breaker, *[False, True] * 4, False)
    assert breaker.state == "closed", "nine calls are below the minimum volume"
    end(breaker, True)
    assert breaker.state == "open"


def test_a_failure_rate_below_the_limit_or_long_ago_does_not_open_it() -> None:
    breaker, clock = made()
    end(breaker, *[True, False, False] * 20)
    assert breaker.state == "closed"
    clock.now += 11
    end(breaker, *[True, False] * 4)
    assert breaker.state == "closed"


def test_an_open_breaker_refuses_until_its_time_is_over_and_tells_how_long() -> None:
    breaker, clock = opened()
    assert breaker.retry_after == 5.0
    clock.now += 4.5
    assert breaker.admit() is None
    assert breaker.retry_after == 0.5
    clock.now += 0.5
    assert breaker.admit() is not None


def test_one_of_a_hundred_concurrent_calls_passes_in_half_open() -> None:
    breaker, clock = opened()
    clock.now += 5.0
    ran = refused = 0

    async def call() -> None:
        nonlocal ran, refused
        ticket = breaker.admit()
        if ticket is None:
            refused += 1
            return
        ran += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        breaker.report(ticket, failed=False)

    async def crowd() -> None:
        await asyncio.gather(*[call() for _ in range(100)])

    asyncio.run(crowd())
    assert (ran, refused) == (1, 99)
    assert breaker.state == "closed"
    assert breaker.retry_after == 0.0


def test_a_failed_probe_opens_it_for_the_whole_time_again() -> None:
    breaker, clock, probe = half_open()
    clock.now += 1.0
    breaker.report(probe, failed=True)
    assert breaker.state == "open"
    assert breaker.retry_after == 5.0


def test_an_abandoned_probe_is_no_evidence_and_the_next_may_follow_at_once() -> None:
    breaker, _, probe = half_open()
    assert breaker.admit() is None
    breaker.abandon(probe)
    assert breaker.state == "half-open"
    end(breaker, False)
    assert breaker.state == "closed"


def test_abandoned_calls_neither_open_it_nor_reset_the_count() -> None:
    breaker, _ = made()
    end(breaker, True, True)
    for _ in range(50):
        breaker.abandon(admitted(breaker))
    assert breaker.state == "closed"
    end(breaker, True)
    assert breaker.state == "open"


def test_a_probe_that_reports_nothing_is_given_up_and_its_late_result_ignored() -> None:
    breaker, clock, lost = half_open()
    clock.now += 4.9
    assert breaker.admit() is None
    clock.now += 0.1
    second = admitted(breaker)
    breaker.report(lost, failed=True)
    assert breaker.state == "half-open"
    assert breaker.admit() is None, "the second probe is still under way"
    breaker.report(second, failed=False)
    assert breaker.state == "closed"


@pytest.mark.parametrize("failed", [True, False], ids=["failure", "success"])
def test_a_late_result_moves_nothing(failed: bool) -> None:
    breaker, clock = made()
    late = [admitted(breaker) for _ in range(3)]
    end(breaker, True, True, True)
    clock.now += 3.0
    breaker.report(late[0], failed=failed)
    assert breaker.state == "open"
    assert breaker.retry_after == 2.0, "a late failure does not keep it open longer"
    clock.now += 2.0
    probe = admitted(breaker)
    breaker.report(late[1], failed=failed)
    assert breaker.state == "half-open"
    breaker.report(probe, failed=False)
    breaker.report(late[2], failed=failed)
    end(breaker, True, True)
    assert breaker.state == "closed", "a late failure is none of the three in a row"


def test_every_change_is_heard_and_measured() -> None:
    metrics = Metrics.of(CollectorRegistry())
    clock = Clock()
    breaker = Breaker(SETTINGS, clock=clock, on_change=report_to(metrics, "store"))
    gauge = metrics.breaker_state.labels("store")._value
    assert gauge.get() == 0
    end(breaker, True, True, True)
    assert gauge.get() == 2
    clock.now += 5
    probe = admitted(breaker)
    assert gauge.get() == 1
    breaker.report(probe, failed=False)
    assert gauge.get() == 0
    counted = {
        to: metrics.breaker_transitions.labels("store", to)._value.get() for to in ("closed", "half-open", "open")
    }
    assert counted == {"closed": 1, "half-open": 1, "open": 1}


def test_any_sequence_of_events_keeps_to_the_transitions_that_exist() -> None:
    """Every (state, event) pair is walked, at random, against the table."""
    allowed: dict[tuple[State, str], set[State]] = {
        ("closed", "admit"): {"closed"},
        ("closed", "success"): {"closed"},
        ("closed", "failure"): {"closed", "open"},
        ("closed", "abandon"): {"closed"},
        ("open", "admit"): {"open", "half-open"},
        ("open", "success"): {"open"},
        ("open", "failure"): {"open"},
        ("open", "abandon"): {"open"},
        ("half-open", "admit"): {"half-open"},
        ("half-open", "success"): {"half-open", "closed"},
        ("half-open", "failure"): {"half-open", "open"},
        ("half-open", "abandon"): {"half-open"},
    }
    rng = random.Random(11)
    walked: dict[tuple[State, str], set[State]] = {}
    for _ in range(200):
        breaker, clock = made()
        tickets: list[Ticket] = []
        for _ in range(60):
            clock.now += rng.choice([0.0, 0.1, 1.0, 5.0])
            before = breaker.state
            event = rng.choice(["admit", "success", "failure", "failure", "abandon"])
            if event == "admit":
                ticket = breaker.admit()
                if ticket is not None:
                    tickets.append(ticket)
                else:
                    assert before != "closed"
            elif tickets:
                ticket = tickets.pop(rng.randrange(len(tickets)))
                if event == "abandon":
                    breaker.abandon(ticket)
                else:
                    breaker.report(ticket, failed=event == "failure")
            walked.setdefault((before, event), set()).add(breaker.state)
    assert walked == allowed


def test_where_there_is_reason_to_hope_the_next_call_is_the_probe_and_only_that() -> None:
    breaker, _ = opened()
    assert breaker.admit() is None
    breaker.probe_now()
    probe = admitted(breaker)
    breaker.report(probe, failed=True)
    assert breaker.admit() is None
    breaker.probe_now()
    probe = admitted(breaker)
    breaker.probe_now()
    assert breaker.admit() is None, "one at a time"
    breaker.report(probe, failed=True)
    assert breaker.state == "open"
    end(breaker, True)  # the one before began when there was none
    assert breaker.admit() is None, "this one did not"
    breaker.probe_now()
    end(breaker, False)
    breaker.probe_now()
    assert breaker.state == "closed"
