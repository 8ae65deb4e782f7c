"""Unleash and its PostgreSQL as the suite starts them."""

from collections.abc import Callable

import pytest

from tests.services import ServiceError, Unleash, wait_until
from tests.services.server import http_request

FLAGS_FOR_CLIENTS = "/api/client/features"


def client_flags(unleash: Unleash, token: str) -> tuple[int, bytes]:
    status, body, _ = http_request(unleash.port, "GET", FLAGS_FOR_CLIENTS, headers={"Authorization": token})
    return status, body


def test_it_is_the_pinned_version(unleash: Unleash) -> None:
    assert unleash.version() == "8.2.0"


def test_a_flag_is_made_moved_and_turned_off_and_the_audit_log_shows_it(unleash: Unleash) -> None:
    admin = unleash.admin
    flag = admin.fresh_name()
    strategy = admin.roll_out(flag, 10)
    assert (admin.percentage(flag), admin.enabled(flag)) == ("10", True)
    admin.set_percentage(flag, strategy, 25)
    admin.turn_off(flag)
    assert (admin.percentage(flag), admin.enabled(flag)) == ("25", False)
    assert not admin.enabled(flag, environment="production")
    assert [event["type"] for event in admin.events(flag)] == [
        "feature-environment-disabled",
        "feature-strategy-update",
        "feature-environment-enabled",
        "feature-strategy-add",
        "feature-created",
    ]


def test_each_backend_token_sees_its_own_environment(unleash: Unleash) -> None:
    flag = unleash.admin.fresh_name()
    unleash.admin.roll_out(flag, 50, environment="production")

    def production_sees_it_on() -> bool:
        status, body = client_flags(unleash, unleash.production_token)
        assert status == 200
        return flag.encode() in body

    wait_until(production_sees_it_on, 5, "the new flag reaches clients")
    assert unleash.admin.enabled(flag, environment="production")
    assert not unleash.admin.enabled(flag, environment="development")
    assert client_flags(unleash, unleash.development_token)[0] == 200
    assert client_flags(unleash, "default:development.wrong")[0] == 401


def test_a_personal_token_shows_as_its_user_in_the_audit_log(unleash: Unleash) -> None:
    token = unleash.admin.personal_token("auditor")
    mine = type(unleash.admin)(unleash.port, token)
    flag = mine.fresh_name()
    mine.create_flag(flag)
    assert [event["createdBy"] for event in mine.events(flag)] == ["auditor@example.com"]


def test_a_private_server_knows_nothing_of_the_shared_one_and_survives_a_kill(
    unleash: Unleash, start_unleash: Callable[..., Unleash]
) -> None:
    shared_flag = unleash.admin.fresh_name()
    unleash.admin.create_flag(shared_flag)
    private = start_unleash()
    with pytest.raises(ServiceError, match="404"):
        private.admin.environment(shared_flag)
    flag = private.admin.fresh_name()
    private.admin.roll_out(flag, 5)
    private.kill()
    with pytest.raises(OSError, match="refused"):
        private.answers()
    private.start()
    assert private.admin.percentage(flag) == "5"
    assert unleash.answers()


def test_with_a_postgres_of_its_own_the_database_can_be_stopped_under_it(
    start_unleash: Callable[..., Unleash],
) -> None:
    broken = start_unleash(own_postgres=True)
    broken.postgres.kill()
    assert broken.running
    assert not broken.postgres.running
    assert broken.answers(), "/health stays 200 without a database"
    broken.postgres.start()
    broken.admin.create_flag("after-the-outage")
