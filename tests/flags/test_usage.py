"""What is counted of decisions, and what of it has been reported: nothing is lost, nothing twice."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tidegate.flags import FlagContext, Gates, ProviderHealth, Reach
from tidegate.flags.usage import Unreported, Usage

Counts = dict[str, tuple[int, int]]


class Half:
    """A provider whose flag admits every second number, and changes at each question for its health."""

    version = 1

    def is_enabled(self, flag: str, context: FlagContext) -> bool:
        return int(context.properties["tenantId"]) % 2 == 0

    def reach(self, flag: str) -> Reach:
        return "some"

    def health(self) -> ProviderHealth:
        return ProviderHealth(ready=True, staleness=0.0, detail="")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take the interpreter from each other whenever they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def decide(usage: Usage, opened: set[str], times: int = 1) -> None:
    usage.tally(frozenset(opened)).decisions += times


def test_a_flag_is_counted_open_where_it_was_and_shut_everywhere_else() -> None:
    usage = Usage(["a", "b", "c"])
    assert usage.counts() == {"a": (0, 0), "b": (0, 0), "c": (0, 0)}
    for opened, times in (({"a", "b"}, 2), (set[str](), 3), ({"a"}, 5)):
        decide(usage, opened, times)
    assert usage.counts() == {"a": (7, 3), "b": (2, 8), "c": (0, 10)}


def test_what_was_reported_is_not_reported_again_and_what_failed_is() -> None:
    usage, unreported, sent = Usage(["a"]), Unreported(), list[Counts]()

    def answer(success: bool) -> None:
        unreported.report(lambda counts: sent.append(dict(counts)) is None and success)

    answer(True)
    unreported.add(usage)
    answer(True)
    assert sent == []
    decide(usage, {"a"}, 2)
    answer(False)
    decide(usage, set(), 3)
    answer(False)
    answer(True)
    answer(True)
    decide(usage, {"a"}, 1)
    answer(True)
    assert sent == [{"a": (2, 0)}, {"a": (2, 3)}, {"a": (2, 3)}, {"a": (1, 0)}]


def test_a_decision_during_a_report_belongs_to_the_next() -> None:
    usage, unreported, sent = Usage(["a"]), Unreported(), list[Counts]()
    unreported.add(usage)
    decide(usage, {"a"})

    def send(counts: object) -> bool:
        sent.append(dict(counts))  # type: ignore[call-overload]
        decide(usage, {"a"})
        return True

    unreported.report(send)
    unreported.report(send)
    assert sent == [{"a": (1, 0)}, {"a": (1, 0)}]


def test_the_usages_of_several_gates_are_reported_as_one() -> None:
    one, other, unreported, sent = Usage(["a", "b"]), Usage(["b"]), Unreported(), list[Counts]()
    unreported.add(one)
    unreported.add(other)
    decide(one, {"a"}, 2)
    decide(other, {"b"}, 3)
    unreported.report(lambda counts: sent.append(dict(counts)) is None)
    assert sent == [{"a": (2, 0), "b": (3, 2)}]


def test_a_second_report_waits_for_the_first_and_does_not_repeat_it() -> None:
    usage, unreported, sent = Usage(["a"]), Unreported(), list[Counts]()
    unreported.add(usage)
    decide(usage, {"a"})
    second = threading.Thread(target=unreported.report, args=(lambda counts: sent.append(dict(counts)) is None,))

    def send(counts: object) -> bool:
        second.start()
        second.join(0.2)  # time to do it wrong
        return True

    unreported.report(send)
    second.join()
    assert sent == []


@pytest.mark.usefixtures("hasty_threads")
def test_no_decision_of_many_threads_is_lost_or_reported_twice() -> None:
    gates = Gates(Half(), flags={"cache": "a"}, max_units=7)  # so that decisions are evicted all the time
    unreported, ended = Unreported(), threading.Event()
    unreported.add(gates.usage)
    reported = {"yes": 0, "no": 0, "reports": 0}
    threads, each = 6, 4000

    def decide_often() -> None:
        for number in range(each):
            gates.decide_for(str(number % 10))

    def send(counts: object) -> bool:
        reported["reports"] += 1
        if reported["reports"] % 3 == 0:
            return False
        yes, no = counts["a"]  # type: ignore[index]
        reported["yes"] += yes
        reported["no"] += no
        return True

    def report_often() -> None:
        while not ended.is_set():
            unreported.report(send)

    deciding = [threading.Thread(target=decide_often) for _ in range(threads)]
    reporting = [threading.Thread(target=report_often) for _ in range(2)]
    for thread in (*deciding, *reporting):
        thread.start()
    for thread in deciding:
        thread.join()
    ended.set()
    for thread in reporting:
        thread.join()
    while reported["yes"] + reported["no"] < threads * each:
        unreported.report(send)
    assert (reported["yes"], reported["no"]) == (threads * each // 2, threads * each // 2)


FORKING = """
import os, sys
from tidegate.flags.usage import Unreported, Usage

usage, unreported = Usage(["a"]), Unreported()
unreported.add(usage)
usage.tally(frozenset("a")).decisions += 5

def fork(counts):
    if os.fork() == 0:  # while the parent reports
        usage.tally(frozenset()).decisions += 2
        unreported.report(lambda mine: print("child", mine, flush=True) is None)
        os._exit(0)
    os.wait()
    print("parent", counts, flush=True)
    return True

unreported.report(fork)
usage.tally(frozenset("a")).decisions += 1
unreported.report(lambda counts: print("parent", counts, flush=True) is None)
"""


def test_a_forked_child_reports_its_own_decisions_only_and_waits_for_no_report_of_its_parent() -> None:
    ran = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == ["child {'a': (0, 2)}", "parent {'a': (5, 0)}", "parent {'a': (1, 0)}"]
