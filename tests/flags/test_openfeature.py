"""Any OpenFeature provider as a source of flags: the SDK's own one in memory, and one of ours that fails."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode, ProviderFatalError
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from tests.services import wait_until
from tidegate.errors import ConfigError
from tidegate.flags import FlagContext, Gates
from tidegate.flags.openfeature import OpenFeatureFlags

CACHE, ETAG = "tidegate.cache", "tidegate.etag"


@pytest.fixture(autouse=True)
def clean_sdk() -> Iterator[None]:
    """The SDK keeps its providers for the whole process."""
    yield
    api.shutdown()


def always(value: object) -> InMemoryFlag[Any]:
    return InMemoryFlag("only", {"only": value})


def for_acme(flag: InMemoryFlag[Any], context: EvaluationContext) -> FlagResolutionDetails[Any]:
    known = context.targeting_key == "acme" and context.attributes == {"tenantId": "acme", "region": "eu"}
    return FlagResolutionDetails(value=known)


class Faulty(InMemoryProvider):
    """A provider whose start, answers and moods a test decides."""

    def __init__(self, flags: dict[str, InMemoryFlag[Any]]) -> None:
        super().__init__(flags)
        self.may_start = threading.Event()
        self.fails_to_start = False
        self.failing: str | None = None
        self.shut_down = threading.Event()

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        assert self.may_start.wait(20)
        if self.fails_to_start:
            raise ProviderFatalError("no licence")

    def shutdown(self) -> None:
        self.shut_down.set()

    def resolve_boolean_details(self, flag_key: str, *args: Any, **kwargs: Any) -> FlagResolutionDetails[bool]:
        if self.failing == flag_key:
            raise RuntimeError("out of order")
        return super().resolve_boolean_details(flag_key, *args, **kwargs)


class Errors:
    """An on_error that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, component: str, error: Exception) -> None:
        assert component == "flags.openfeature"
        self.seen.append(str(error))


def run(flags: OpenFeatureFlags, check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await flags.start()
        await flags.start()
        try:
            await check()
        finally:
            await flags.aclose()
            await flags.aclose()

    asyncio.run(main())


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 20, what)


def acme(**properties: str) -> FlagContext:
    return FlagContext(unit="acme", properties={"tenantId": "acme", **properties})


def test_the_unit_is_the_targeting_key_and_the_properties_are_attributes() -> None:
    flags = OpenFeatureFlags(
        InMemoryProvider({CACHE: InMemoryFlag("x", {"x": True}, context_evaluator=for_acme), ETAG: always(True)})
    )
    gates = Gates(flags)

    async def check() -> None:
        await until(lambda: gates.reach("cache") == "some", "the provider is ready")
        assert gates.decide(acme(region="eu")).open == {"cache", "etag"}
        assert gates.decide(acme(region="us")).open == {"etag"}
        assert gates.decide_for("globex").open == {"etag"}
        assert gates.decide_for(None) is gates.nobody
        assert (flags.health().ready, flags.health().staleness, flags.health().detail) == (True, 0.0, "")

    run(flags, check)


def test_every_flag_is_shut_until_the_provider_is_ready_and_start_does_not_wait_for_it() -> None:
    provider = Faulty({CACHE: always(True)})
    flags = OpenFeatureFlags(provider)
    gates = Gates(flags)

    async def check() -> None:
        assert gates.decide_for("acme").open == frozenset()
        assert not flags.health().ready
        assert "NOT_READY" in flags.health().detail
        assert gates.reach("cache") == "nobody"
        provider.may_start.set()
        await until(lambda: gates.decide_for("acme").open == {"cache"}, "the layer opens")

    run(flags, check)
    assert provider.shut_down.wait(20)


def test_a_provider_that_cannot_start_leaves_all_shut_and_says_why() -> None:
    provider = Faulty({CACHE: always(True)})
    provider.fails_to_start = True
    provider.may_start.set()
    flags = OpenFeatureFlags(provider)
    gates = Gates(flags)

    async def check() -> None:
        await until(lambda: "FATAL" in flags.health().detail, "the fault shows")
        assert not flags.health().ready
        assert gates.decide_for("acme").open == frozenset()

    run(flags, check)


def test_an_answer_that_fails_shuts_its_flag_alone_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "openfeature")
    provider, errors = Faulty({CACHE: always(True), ETAG: always(True), "tidegate.breaker": always("yes")}), Errors()
    provider.may_start.set()
    provider.failing = CACHE
    flags = OpenFeatureFlags(provider, poll_interval=None, on_error=errors)
    gates = Gates(flags)

    async def check() -> None:
        await until(lambda: flags.health().ready, "the provider is ready")
        for _ in range(3):
            assert gates.decide_for("acme").open == {"etag"}
        assert sorted(error.split(":")[0] for error in errors.seen) == ["tidegate.breaker", CACHE]
        assert any("out of order" in error for error in errors.seen)
        assert any(ErrorCode.TYPE_MISMATCH in error for error in errors.seen)
        provider.failing = None
        provider.emit_provider_configuration_changed(ProviderEventDetails())
        await until(lambda: gates.decide_for("acme").open == {"cache", "etag"}, "the flag opens again")

    run(flags, check)


def test_a_change_that_is_told_is_in_force_at_once_and_one_that_is_not_after_the_interval() -> None:
    for poll_interval, told in ((None, True), (0.05, False)):
        provider = Faulty({CACHE: always(True)})
        provider.may_start.set()
        flags = OpenFeatureFlags(provider, poll_interval=poll_interval)
        gates = Gates(flags)

        async def check(provider: Faulty = provider, gates: Gates = gates, told: bool = told) -> None:
            await until(lambda: gates.decide_for("acme").open == {"cache"}, "the layer opens")
            provider._flags[CACHE] = always(False)
            if told:
                provider.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=[CACHE]))
            await until(lambda: gates.decide_for("acme").open == frozenset(), "the layer shuts")

        run(flags, check)


def test_a_stale_provider_ages_from_when_it_said_so_and_its_flags_shut_at_max_staleness() -> None:
    provider = Faulty({CACHE: always(True)})
    provider.may_start.set()
    flags = OpenFeatureFlags(provider, poll_interval=0.05)
    gates = Gates(flags, max_staleness=0.5)

    async def check() -> None:
        await until(lambda: gates.decide_for("acme").open == {"cache"}, "the layer opens")
        provider.emit_provider_stale(ProviderEventDetails(message="the line is cut"))
        await until(lambda: flags.health().staleness > 0, "the state ages")
        assert flags.health().staleness < 20
        told = "the OpenFeature provider is STALE: the line is cut"
        await until(lambda: flags.health().detail == told, "the provider's own words")
        await until(lambda: gates.reach("cache") == "nobody", "the layer shuts")
        assert gates.decide_for("acme").open == frozenset()
        provider.emit_provider_ready(ProviderEventDetails())
        await until(lambda: gates.decide_for("acme").open == {"cache"}, "the layer opens again")
        provider.emit_provider_error(ProviderEventDetails(message="lost"))
        await until(lambda: gates.decide_for("acme").open == frozenset(), "the layer shuts again")

    run(flags, check)


def test_it_can_be_started_again_and_leaves_the_application_s_own_provider_alone() -> None:
    provider = Faulty({CACHE: always(True)})
    provider.may_start.set()
    api.set_provider_and_wait(provider)
    flags = OpenFeatureFlags(provider)
    gates = Gates(flags)

    async def check() -> None:
        await until(lambda: gates.decide_for("acme").open == {"cache"}, "the layer opens")

    run(flags, check)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(flags._domain)]
    run(flags, check)
    assert api.get_client().get_boolean_value(CACHE, False)
    assert not provider.shut_down.is_set()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_an_interval_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="poll_interval"):
        OpenFeatureFlags(InMemoryProvider({}), poll_interval=seconds)
