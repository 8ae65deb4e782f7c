"""Unleash: the real server from npm, on its own database of a PostgreSQL.

Migrations run once a session, on a template database that each further server copies (0.06 s instead of a second).
"""

from typing import ClassVar

from tests.services.postgres import Postgres
from tests.services.programs import node, unleash_server
from tests.services.server import Server, free_port, http_request
from tests.services.unleash.admin import UnleashAdmin

__all__ = ["Unleash", "UnleashAdmin"]

ADMIN_SECRET = "unleash-admin-token-000001"
DEVELOPMENT_SECRET = "unleash-development-token-01"
PRODUCTION_SECRET = "unleash-production-token-01"


class Unleash(Server):
    """An Unleash server with its two environments `development` and `production`, and nothing in it.

    `postgres` is shared between servers and stays the caller's to stop; leave it out and this server starts one for
    itself (`.postgres`: stop or suspend that to see Unleash without its database).
    """

    name: ClassVar[str] = "unleash"
    start_seconds: ClassVar[float] = 60.0
    admin_token: ClassVar[str] = f"*:*.{ADMIN_SECRET}"
    development_token: ClassVar[str] = f"default:development.{DEVELOPMENT_SECRET}"
    production_token: ClassVar[str] = f"default:production.{PRODUCTION_SECRET}"

    def __init__(self, postgres: Postgres | None = None, *, database: str | None = None) -> None:
        super().__init__()
        self.port = free_port()
        self.owns_postgres = postgres is None
        self.postgres = postgres or Postgres()
        self.admin = UnleashAdmin(self.port, self.admin_token)
        self._database = database

    @property
    def url(self) -> str:
        """Root address; the Admin API is below `/api/admin`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """What UnleashClient calls `url`."""
        return f"{self.url}/api"

    def command(self) -> list[str]:
        """Program and arguments; makes the database at the first call."""
        if not self.postgres.running:
            self.postgres.start()
        if self._database is None:
            self._database = self._make_database()
        return [str(node()), str(unleash_server())]

    def environment(self) -> dict[str, str]:
        """Configuration without a person: tokens from the start, nothing sent to anybody."""
        return {
            "DATABASE_URL": self.postgres.url(self._database or ""),
            "DATABASE_SSL": "false",
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self.port),
            "UNLEASH_URL": self.url,
            "NODE_ENV": "production",
            "LOG_LEVEL": "warn",
            "CHECK_VERSION": "false",
            "SEND_TELEMETRY": "false",
            "SCARF_ANALYTICS": "false",
            # Unleash heeds these only while its table of tokens is empty.
            "INIT_ADMIN_API_TOKENS": self.admin_token,
            "INIT_BACKEND_API_TOKENS": f"{self.development_token},{self.production_token}",
        }

    def answers(self) -> bool:
        """Whether /health is 200 (it stays so without a database)."""
        return http_request(self.port, "GET", "/health", seconds=2)[0] == 200

    def version(self) -> str:
        """Version that the running server names."""
        info = self.admin.request("GET", "/api/admin/ui-config")
        return str(info["version"])

    def stop(self) -> None:
        """Stop the server, and its PostgreSQL if that is its own."""
        if self.owns_postgres and self.postgres.running:
            self.postgres.resume()  # Unleash says good-bye to its database before it ends.
        super().stop()
        if self.owns_postgres:
            self.postgres.stop()

    def _make_database(self) -> str:
        if self.owns_postgres:
            self.postgres.create_database("unleash")
            return "unleash"
        return self.postgres.copy_of("unleash_template", self._migrate)

    def _migrate(self, database: str) -> None:
        Unleash(self.postgres, database=database).start().stop()
