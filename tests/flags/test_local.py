"""Flags from a file: the format, what is refused, and how changes come in force."""

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.services import wait_until
from tidegate.errors import ConfigError
from tidegate.flags import FlagContext, LocalFlags, local, parse_flags

FLAG = "tidegate.cache"
ACME = FlagContext(unit="acme", properties={"tenantId": "acme"})


def document(percentage: object = 100, *, enabled: object = True) -> dict[str, Any]:
    return {"version": 1, "flags": {FLAG: {"enabled": enabled, "strategies": [{"percentage": percentage}]}}}


def replace(path: Path, content: object) -> None:
    """Write as the docstring of the module asks: a finished neighbour takes the file's place."""
    new = path.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    os.replace(new, path)


class Errors:
    """An on_error that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Exception]] = []

    def __call__(self, component: str, error: Exception) -> None:
        self.seen.append((component, error))


def following(path: Path, check: Callable[[LocalFlags, Errors], None], *, poll_interval: float = 0.02) -> None:
    """Run `check` while the file is followed; it blocks the event loop, as a bad handler would."""
    errors = Errors()
    flags = LocalFlags(path, poll_interval=poll_interval, on_error=errors)

    async def main() -> None:
        await flags.start()
        try:
            check(flags, errors)
        finally:
            await flags.aclose()

    asyncio.run(main())


def problems_of(content: object) -> dict[str, tuple[object, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_flags(content if isinstance(content, str | bytes) else json.dumps(content), "flags.json")
    problems = {found.path: (found.value, found.problem) for found in caught.value.problems}
    assert len(problems) == len(caught.value.problems), "one mistake is told twice"
    return problems


def test_the_documented_example_is_read_as_documented() -> None:
    text = local.__doc__ or ""
    example = text[text.index("    {") : text.index("One file is")]
    (flag,) = parse_flags(example, "example").values()
    assert (flag.name, flag.enabled) == (FLAG, True)
    (strategy,) = flag.strategies
    assert (strategy.percentage, strategy.stickiness, strategy.group) == (10, "tenantId", FLAG)
    (constraint,) = strategy.constraints
    assert (constraint.field, constraint.operator, constraint.values) == ("tenantId", "IN", frozenset({"acme"}))


def test_stickiness_group_and_constraints_have_defaults() -> None:
    (strategy,) = parse_flags(json.dumps(document(10)), "flags.json")[FLAG].strategies
    assert (strategy.stickiness, strategy.group, strategy.constraints) == ("tenantId", FLAG, ())


def test_a_flag_may_be_off_without_strategies() -> None:
    flags = parse_flags(json.dumps({"version": 1, "flags": {"f": {"enabled": False, "strategies": []}}}), "flags.json")
    assert not flags["f"].enabled


def test_every_problem_is_told_at_once_with_path_value_and_fix() -> None:
    broken = {
        "version": 2,
        "colour": "red",
        "flags": {
            FLAG: {
                "enabled": "yes",
                "strategies": [
                    {"percentage": "10", "sticky": "tenantId"},
                    {"percentage": 101, "stickiness": "random", "group": ""},
                    {
                        "percentage": 5,
                        "constraints": [
                            {"field": "environment", "operator": "STR_CONTAINS", "values": ["a", 1]},
                            {"field": "region", "values": "eu"},
                        ],
                    },
                    7,
                ],
            },
            "open for all": {"enabled": True, "strategies": []},
            "half": {"strategies": {}},
            "other": {"enabled": True, "strategies": 5},
        },
    }
    problems = problems_of(broken)
    at = f'flags["{FLAG}"]'
    assert problems.keys() == {
        "version",
        "colour",
        f"{at}.enabled",
        f"{at}.strategies[0].percentage",
        f"{at}.strategies[0].sticky",
        f"{at}.strategies[1].percentage",
        f"{at}.strategies[1].stickiness",
        f"{at}.strategies[1].group",
        f"{at}.strategies[2].constraints[0].field",
        f"{at}.strategies[2].constraints[0].operator",
        f"{at}.strategies[2].constraints[0].values[1]",
        f"{at}.strategies[2].constraints[1].operator",
        f"{at}.strategies[2].constraints[1].values",
        f"{at}.strategies[3]",
        'flags["open for all"].name',
        'flags["open for all"].strategies',
        'flags["half"].enabled',
        'flags["half"].strategies',
        'flags["other"].strategies',
    }
    assert problems[f"{at}.strategies[0].percentage"][0] == "10"
    with pytest.raises(ConfigError, match=r"'10' is not a percentage; write a whole number from 0 to 100") as raised:
        parse_flags(json.dumps(broken), "flags.json")
    assert '  - flags["half"].enabled is missing; add it' in str(raised.value)


@pytest.mark.parametrize("variant", ["shaddow", "Shadow", "", 5, ["shadow"], True])
def test_a_variant_that_is_not_shadow_is_refused_and_does_not_open_for_real(variant: object) -> None:
    strategy = {"percentage": 100, "variant": variant}
    with pytest.raises(ConfigError, match=r"variant.*not a variant that is known here.*write shadow"):
        parse_flags(json.dumps({"version": 1, "flags": {"f": {"enabled": True, "strategies": [strategy]}}}), "flags")


@pytest.mark.parametrize("percentage", [-1, 101, 12.5, 10.0, True, None, "10", "abc", [], math.nan])
def test_only_whole_percentages_from_0_to_100_are_read(percentage: object) -> None:
    assert list(problems_of(document(percentage))) == [f'flags["{FLAG}"].strategies[0].percentage']


@pytest.mark.parametrize(
    ("content", "path", "problem"),
    [
        ("", "line 1 column 1", "is not JSON: Expecting value"),
        ('{"version": 1,\n "flags": {}', "line 2 column 13", "is not JSON: Expecting ',' delimiter"),
        (b'{"version": \xff}', "byte 12", "is not UTF-8"),
        ("[" * 100_000, "(file)", "is nested too deeply"),
        ('{"version": ' + "9" * 5000 + "}", "(file)", "holds a number that cannot be read: Exceeds the limit"),
        ("null", "(file)", "is not an object"),
        ('{"version": 1, "flags": {}, "flags": {}}', "flags", "is how often this key is given in one object"),
        ('{"flags": {}}', "version", "is missing"),
        ('{"version": true, "flags": {}}', "version", "is not a version of this format"),
        ('{"version": 1, "flags": []}', "flags", "is not an object"),
    ],
)
def test_what_is_no_flag_file_is_named(content: str | bytes, path: str, problem: str) -> None:
    assert problems_of(content)[path][1].startswith(problem)


def test_a_poll_interval_that_is_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="poll_interval: 0 is not a positive number of seconds"):
        LocalFlags(tmp_path / "flags.json", poll_interval=0)


def test_the_state_is_in_force_when_start_returns(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))

    def check(flags: LocalFlags, errors: Errors) -> None:
        assert flags.is_enabled(FLAG, ACME)
        assert not flags.is_enabled("unknown", ACME)
        assert flags.version == 1
        health = flags.health()
        assert health.ready
        assert health.staleness < 10
        assert (health.detail, errors.seen) == ("", [])

    following(path, check, poll_interval=60)


def test_a_change_is_in_force_soon_even_while_the_event_loop_is_blocked(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))

    def check(flags: LocalFlags, errors: Errors) -> None:
        replace(path, document(100, enabled=False))
        wait_until(lambda: not flags.is_enabled(FLAG, ACME), 5, "the flag shuts")
        assert flags.version == 2
        replace(path, document(100))
        wait_until(lambda: flags.is_enabled(FLAG, ACME), 5, "the flag opens")
        assert (flags.version, errors.seen) == (3, [])

    following(path, check)


def test_a_change_that_keeps_size_and_time_stamp_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(document(100)))
    before = path.stat()

    def check(flags: LocalFlags, errors: Errors) -> None:
        path.write_text(json.dumps(document(100)).replace("100", "  0"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        wait_until(lambda: not flags.is_enabled(FLAG, ACME), 5, "the flag shuts")

    following(path, check)


def test_told_of_a_change_it_looks_at_once(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(document(100)))
    flags = LocalFlags(path, poll_interval=3600)

    async def main() -> None:
        await flags.start()
        path.write_text(json.dumps(document(0)))
        flags.poll_now()
        await asyncio.to_thread(wait_until, lambda: not flags.is_enabled(FLAG, ACME), 5, "the flag shuts")
        await flags.aclose()

    asyncio.run(main())


def test_an_unchanged_file_keeps_its_version_and_stays_fresh(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))

    def check(flags: LocalFlags, errors: Errors) -> None:
        seen_after_start = flags._seen_at
        replace(path, document(100))
        wait_until(lambda: flags._seen_at > seen_after_start, 5, "another look")
        assert flags.version == 1

    following(path, check)


def test_flags_are_shut_while_there_is_no_file_and_open_when_it_appears(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"

    def check(flags: LocalFlags, errors: Errors) -> None:
        assert not flags.is_enabled(FLAG, ACME)
        health = flags.health()
        assert (health.ready, health.staleness) == (False, math.inf)
        told = f"the flag file {path} cannot be read: No such file or directory; tidegate flags init makes one"
        assert health.detail == f"{told} (flags.file)"
        replace(path, document(100))
        wait_until(lambda: flags.is_enabled(FLAG, ACME), 5, "the flag opens")
        assert flags.health().detail == ""
        assert [component for component, _ in errors.seen] == ["flags.local"]

    following(path, check)


@pytest.mark.parametrize(
    "fault", ["is not a percentage", "No such file", "is larger than 1048576 bytes", "a number that cannot be read"]
)
def test_a_file_that_goes_bad_keeps_the_last_state_ages_and_is_reported_once(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))

    def check(flags: LocalFlags, errors: Errors) -> None:
        if "percentage" in fault:
            replace(path, document("100"))
        elif "number" in fault:
            replace(path, '{"version": ' + "9" * 5000 + "}")
        elif "file" in fault:
            path.unlink()
        else:
            replace(path, " " * (1 << 20) + "{}")
        wait_until(lambda: errors.seen, 5, "the fault is reported")
        age = flags.health().staleness
        # Ten more looks, each of which finds the same fault.
        wait_until(lambda: flags.health().staleness > age + 0.2, 5, "the state ages")
        assert len(errors.seen) == 1
        assert flags.is_enabled(FLAG, ACME)
        assert flags.health().ready
        assert flags.health().detail == str(errors.seen[0][1])
        assert fault in flags.health().detail
        replace(path, document(0))
        wait_until(lambda: not flags.is_enabled(FLAG, ACME), 5, "the mended file is in force")
        assert flags.health().detail == ""
        assert flags.health().staleness < 0.2

    following(path, check)


def test_an_on_error_that_raises_does_not_end_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "flags.json"

    def on_error(component: str, error: Exception) -> None:
        raise RuntimeError("the counter is broken")

    flags = LocalFlags(path, poll_interval=0.02, on_error=on_error)

    async def main() -> None:
        await flags.start()
        replace(path, document(100))
        await asyncio.to_thread(wait_until, lambda: flags.is_enabled(FLAG, ACME), 5, "the flag opens")
        await flags.aclose()

    asyncio.run(main())
    assert "on_error failed for flags.local" in caplog.text


def test_without_on_error_a_fault_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        flags = LocalFlags(tmp_path / "flags.json", poll_interval=60)
        await flags.start()
        await flags.aclose()

    asyncio.run(main())
    (record,) = caplog.records
    assert record.name == "tidegate.flags"
    assert record.getMessage().startswith("flags.local: FlagError: the flag file ")


def watchers() -> int:
    """Threads that watch a flag file, those of other tests included."""
    return [thread.name for thread in threading.enumerate()].count("tidegate-flags-local")


def test_closing_ends_the_thread_and_keeps_the_state(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))
    flags = LocalFlags(path, poll_interval=60)

    async def main() -> None:
        await flags.start()
        await flags.start()
        assert watchers() == before + 1
        await flags.aclose()

    before = watchers()
    asyncio.run(main())
    assert watchers() == before
    assert flags.is_enabled(FLAG, ACME)


def test_it_can_be_started_again_after_it_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    replace(path, document(100))
    flags = LocalFlags(path, poll_interval=0.02)

    async def once(percentage: int) -> None:
        await flags.start()
        replace(path, document(percentage))
        await asyncio.to_thread(wait_until, lambda: flags.is_enabled(FLAG, ACME) is (percentage > 0), 5, "the change")
        await flags.aclose()

    before = watchers()
    for percentage in (0, 100, 0):
        asyncio.run(once(percentage))
    assert watchers() == before


FORKING = """
import asyncio, os, sys, time
from tidegate.flags import FlagContext, LocalFlags

path, good, changed = sys.argv[1:]
acme = FlagContext(unit="acme", properties={"tenantId": "acme"})

def write(content):
    with open(path + ".new", "w") as file:
        file.write(content)
    os.replace(path + ".new", path)

write(good)
flags = LocalFlags(path, poll_interval=0.02)
asyncio.run(flags.start())
assert flags.is_enabled("tidegate.cache", acme)
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asyncio.run(flags.start())
write(changed)
deadline = time.monotonic() + 10
while flags.is_enabled("tidegate.cache", acme):
    if time.monotonic() > deadline:
        os._exit(1)
    time.sleep(0.01)
os._exit(0)
"""


def test_a_forked_child_that_starts_it_again_follows_the_file(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "flags.json"), json.dumps(document(100)), json.dumps(document(0))]
    ran = subprocess.run([sys.executable, "-c", FORKING, *arguments], capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_file_that_does_not_answer_holds_up_neither_the_start_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_FIRST_LOOK", 0.1, raising=False)
    path = tmp_path / "flags.json"
    os.mkfifo(path)  # whoever opens it waits for a writer, as on a share whose server is away
    flags = LocalFlags(path, poll_interval=0.01)

    async def main() -> None:
        async with asyncio.timeout(20):
            await flags.start()
            assert not flags.health().ready
            await flags.aclose()

    opener = threading.Timer(30, lambda: os.close(os.open(path, os.O_RDWR)))  # lest a failure hang for ever
    opener.start()
    try:
        asyncio.run(main())
    finally:
        opener.cancel()
        os.close(os.open(path, os.O_RDWR))
    watcher = flags._watcher
    assert watcher is not None
    wait_until(lambda: not watcher.is_alive(), 20, "the end of the watch")
