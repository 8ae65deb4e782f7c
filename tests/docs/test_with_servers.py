"""The pages that speak of other servers, followed on real ones: Unleash and Prometheus."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import Page
from tests.docs.reader import Reader
from tests.services import Prometheus, Unleash, wait_until
from tests.services.server import http_request
from tidegate.rollout.records import Rollout
from tidegate.rollout.store import Journal

README, FLAG_PAGE, ROLLOUTS = Page.of("README.md"), Page.of("docs/flags.md"), Page.of("docs/rollouts.md")


def save_from_the_readme(reader: Reader, *files: str) -> None:
    for file in files:
        (reader.folder / file).write_text(reader.text_of(README.saved_as(file)), encoding="utf-8")


def part_of(page: Page, blocks: Any) -> Page:
    return Page(name=page.name, text=page.text, blocks=tuple(blocks))


def test_the_way_from_a_running_unleash_to_the_first_canary_tenant_leads_there(
    start_unleash: Callable[..., Unleash], tmp_path: Path
) -> None:
    unleash = start_unleash()
    opened = [number for number, block in enumerate(FLAG_PAGE.blocks) if "tidegate flags open" in block.text]
    assert len(opened) == 1
    done = opened[0] + 1
    with Reader(
        tmp_path, given={"TIDEGATE_ROLLOUT_ADMIN_TOKEN": unleash.admin_token}, ports={4242: unleash.port}
    ) as reader:
        save_from_the_readme(reader, "app.py", "cache-canary.yaml")
        reader.follow(part_of(FLAG_PAGE, FLAG_PAGE.blocks[:done]))  # ends with a hit for acme
        others = http_request(reader.port(8000), "GET", "/clients", headers={"x-tenant": "globex"})
        assert (others[0], others[2].get("cache-status")) == (200, None)
        (kill,) = [number for number, block in enumerate(FLAG_PAGE.blocks) if "tidegate kill" in block.text]
        reader.follow(part_of(FLAG_PAGE, FLAG_PAGE.blocks[done:kill]))  # ends with a rollout that has opened
        assert unleash.admin.enabled("tidegate.cache")
        assert unleash.admin.percentage("tidegate.cache") == "1"
        reader.follow(part_of(FLAG_PAGE, FLAG_PAGE.blocks[kill:]))  # begins with shutting it
        assert not unleash.admin.enabled("tidegate.cache")


@pytest.fixture
def rolling_out(tmp_path: Path) -> Any:
    """A reader of docs/rollouts.md whose rollout has begun and waits for an alert."""
    with Reader(tmp_path) as reader:
        save_from_the_readme(reader, "app.py", "tidegate.toml", "flags.json")
        reader.follow(part_of(ROLLOUTS, [ROLLOUTS.saved_as("cache-canary.yaml")]))
        (run,) = [block for block in ROLLOUTS.of_language("console") if "TIDEGATE_ROLLOUT_LISTEN" in block.text]
        until_watched = run.text.partition("$ tidegate rollout status")[0]
        reader.follow(Page.of("docs/rollouts.md", f"```console\n{until_watched}```\n"))
        yield reader


def rollout_of(reader: Reader) -> Rollout:
    with Journal(reader.folder / "tidegate-journal.sqlite3", make=False) as journal:
        return journal.get("cache-canary")


class _OfThePage(Prometheus):
    """Prometheus with the page's files, but with an alert that fires at once."""

    def __init__(self, reader: Reader) -> None:
        super().__init__([])
        document = yaml.safe_load(reader.here(ROLLOUTS.saved_as("prometheus.yml").text))
        document["global"] = {"evaluation_interval": "1s"}
        self.config.write_text(json.dumps(document), encoding="utf-8")
        rules = yaml.safe_load(ROLLOUTS.saved_as("rules.yml").text)
        (rule,) = rules["groups"][0]["rules"]
        self.expression = rule["expr"]
        rule |= {"expr": "vector(1)", "for": "0s"}
        (self.directory / "rules.yml").write_text(json.dumps(rules), encoding="utf-8")

    def command(self) -> list[str]:
        """What fires before Prometheus knows where to send it is sent again after a minute; here, a second."""
        return [*super().command(), "--rules.alert.resend-delay=1s"]


def test_the_pages_prometheus_shuts_the_flag_by_its_alert(
    rolling_out: Reader, prometheus: Callable[..., Prometheus]
) -> None:
    assert rollout_of(rolling_out).state in ("observing", "holding")
    with _OfThePage(rolling_out) as watching:
        wait_until(lambda: rollout_of(rolling_out).state == "rolled_back", 30, "rolled back")
        watching.query(watching.expression)  # is PromQL
        watching.wait_for_sample('up{job="api"} == 1')  # scrapes the app
    assert "HighErrorRate" in rollout_of(rolling_out).reason


def test_the_pages_alertmanager_shuts_the_flag_with_its_token_only(rolling_out: Reader) -> None:
    document = yaml.safe_load(rolling_out.here(ROLLOUTS.saved_as("alertmanager.yml").text))
    (receiver,) = [one for one in document["receivers"] if one["name"] == document["route"]["receiver"]]
    (webhook,) = receiver["webhook_configs"]
    labels = {"alertname": "HighErrorRate", "service": "api"}
    body = json.dumps({"version": "4", "alerts": [{"status": "firing", "labels": labels}]}).encode()

    def post(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(webhook["url"], data=body, headers=headers), timeout=10
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert post("another") == 401
    assert rollout_of(rolling_out).state in ("observing", "holding")
    assert post(webhook["http_config"]["authorization"]["credentials"]) == 200
    assert rollout_of(rolling_out).state == "rolled_back"
