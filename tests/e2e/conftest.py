"""The stage: one Unleash, PostgreSQL and Valkey for all stories, put back between them; the rest new for each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stage import ALERT_TOKEN, ENVIRONMENT, FLAG, App, Stage, shut_by_hand
from tests.services import AlertReceiver, Postgres, Prometheus, Unleash, Valkey, free_port
from tidegate.vocabulary import LAYERS

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No story runs our code on an event loop of this process: only the crowd, whose threads share one interpreter."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.blocks_the_loop("the loops are the crowd's"))


@pytest.fixture(scope="session")
def gates(postgres: Postgres) -> Iterator[Unleash]:
    """An Unleash with the flags of the five layers: all open for everybody but the cache, which is off at 0 %."""
    with Unleash(postgres) as server:
        server.admin.create_context_field("userId")
        for layer in LAYERS:
            name = f"tidegate.{layer}"
            server.admin.create_flag(name)
            server.admin.add_strategy(name, 0 if name == FLAG else 100, environment=ENVIRONMENT, stickiness="userId")
            if name != FLAG:
                server.admin.turn_on(name, environment=ENVIRONMENT)
        yield server


@pytest.fixture(scope="session")
def controller_token(gates: Unleash) -> str:
    """A personal access token: under its name the controller's changes stand in Unleash's log."""
    return gates.admin.personal_token("rollout-controller")


@pytest.fixture
def set_stage(gates: Unleash, controller_token: str, valkey: Valkey, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Starts the application and Prometheus, and returns when both answer.

    rules: Prometheus' rules; it posts its alerts to the stage's controller. Further arguments are settings.
    """
    with ExitStack() as stack:

        def make(*, rules: Any = (), workers: int = 1, **settings: str) -> Stage:
            shut_by_hand(gates)
            port, control_port = free_port(), free_port()
            receiver = AlertReceiver(address=f"127.0.0.1:{control_port}", token=ALERT_TOKEN)
            prometheus = Prometheus([f"127.0.0.1:{port}"], rules=rules, alert_receivers=[receiver])
            given = {
                "TIDEGATE_FLAGS_PROVIDER": "unleash",
                "TIDEGATE_FLAGS_UNLEASH_URL": gates.api_url,
                "TIDEGATE_FLAGS_UNLEASH_TOKEN": gates.production_token,
                "TIDEGATE_FLAGS_ENVIRONMENT": ENVIRONMENT,
                "TIDEGATE_FLAGS_UNIT": "user",
                "TIDEGATE_FLAGS_BANDS": "10,50,100",
                "TIDEGATE_FLAGS_POLL_INTERVAL": "0.5",
                "TIDEGATE_STORE_URL": valkey.url,
                "TIDEGATE_TELEMETRY_METRICS_DIR": str(tmp_path / "metrics"),
                "TIDEGATE_ROLLOUT_JOURNAL": str(tmp_path / "journal.sqlite3"),
                "TIDEGATE_ROLLOUT_PROMETHEUS_URL": prometheus.url,
                "TIDEGATE_ROLLOUT_ADMIN_TOKEN": controller_token,
                "TIDEGATE_ROLLOUT_ALERT_TOKEN": ALERT_TOKEN,
            } | settings
            app = App(given, port=port, workers=workers)
            stage = Stage(
                folder=tmp_path,
                unleash=gates,
                app=app,
                prometheus=stack.enter_context(prometheus),
                settings=given,
                events_before=max(int(event["id"]) for event in gates.admin.events(FLAG, limit=1)),
                control_port=control_port,
            )
            stack.callback(lambda: [journal.close() for journal in stage.journals])
            stack.enter_context(app)
            return stage

        yield make
