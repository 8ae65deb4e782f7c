"""The demo's stage with real servers: Unleash on PostgreSQL, Valkey, Prometheus.

They are those that the tests start; `make demo-real` fetches what is missing.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from examples.demo.stage import FLAG, Stage, free_port, serving
from tests.services.prometheus import Prometheus
from tests.services.unleash import Unleash
from tests.services.valkey import Valkey
from tidegate.vocabulary import LAYERS

__all__ = ["real_stage"]

ENVIRONMENT = "production"


@asynccontextmanager
async def real_stage(folder: Path) -> AsyncGenerator[Stage, None]:
    """Flags in Unleash, responses in Valkey, the controller on Prometheus.

    Starting them blocks the event loop for some seconds; nothing else runs yet.
    """
    async with AsyncExitStack() as stack:
        unleash = stack.enter_context(Unleash())
        valkey = stack.enter_context(Valkey())
        port = free_port()
        prometheus = stack.enter_context(Prometheus([f"127.0.0.1:{port}"]))
        _open_all_but_one(unleash)
        stage = Stage(
            base=f"http://127.0.0.1:{port}",
            journal=folder / "journal.sqlite3",
            folder=folder,
            environment=ENVIRONMENT,
            parts=f"uvicorn · Unleash {unleash.version()} on PostgreSQL · Valkey · Prometheus {prometheus.version()}",
            environ={
                "TIDEGATE_FLAGS_PROVIDER": "unleash",
                "TIDEGATE_FLAGS_UNLEASH_URL": unleash.api_url,
                "TIDEGATE_FLAGS_UNLEASH_TOKEN": unleash.production_token,
                "TIDEGATE_FLAGS_ENVIRONMENT": ENVIRONMENT,
                "TIDEGATE_FLAGS_UNIT": "user",
                "TIDEGATE_FLAGS_BANDS": "1,10,50,100",
                "TIDEGATE_STORE_URL": valkey.url,
                "TIDEGATE_ROLLOUT_JOURNAL": str(folder / "journal.sqlite3"),
                "TIDEGATE_ROLLOUT_PROMETHEUS_URL": prometheus.url,
                "TIDEGATE_ROLLOUT_ADMIN_TOKEN": unleash.admin.personal_token("rollout-controller"),
            },
        )
        async with serving(stack, stage) as served:
            prometheus.wait_for_sample(f'tidegate_cohort_requests_total{{flag="{FLAG}"}}')
            yield served


def _open_all_but_one(unleash: Unleash) -> None:
    """Every layer's flag with a strategy of its own; all open but the one that the demo rolls out."""
    admin = unleash.admin
    admin.create_context_field("userId")
    for layer in LAYERS:
        name = f"tidegate.{layer}"
        admin.create_flag(name)
        admin.add_strategy(name, 0 if name == FLAG else 100, environment=ENVIRONMENT, stickiness="userId")
        if name != FLAG:
            admin.turn_on(name, environment=ENVIRONMENT)
