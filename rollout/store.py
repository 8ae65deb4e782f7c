"""The journal: every rollout, its state, what was decided and why, what people ask for, and who may write.

SQLite in WAL mode with synchronous=FULL, so that what was committed is there after a crash or a power cut. Keep the
file on a local disk: WAL does not work over a network file system.

Guaranteed: a change of state and its event are one transaction; it happens only if the rollout is still as the writer
read it (version) and the writer still holds the lease (fencing token). Not guaranteed: that a former leader's write to
the *flag service* is stopped; `tidegate.rollout.actuator` makes that harmless.
"""

import json
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from tidegate.errors import RolloutError
from tidegate.rollout.machine import ACTIVE, State
from tidegate.rollout.records import Command, ConflictError, Entry, Lease, LostLeaseError, Rollout, rollout_of
from tidegate.rollout.spec import RolloutSpec

__all__ = ["Journal"]

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE rollouts (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, flag TEXT NOT NULL, environment TEXT NOT NULL, spec TEXT NOT NULL,
  state TEXT NOT NULL, active INTEGER NOT NULL, step INTEGER NOT NULL, percent INTEGER NOT NULL,
  opened REAL NOT NULL, entered REAL NOT NULL,
  reason TEXT NOT NULL, cause TEXT NOT NULL, intent TEXT NOT NULL, memory TEXT NOT NULL, latest TEXT NOT NULL,
  created REAL NOT NULL, updated REAL NOT NULL, version INTEGER NOT NULL
);
CREATE UNIQUE INDEX one_active_name ON rollouts (name) WHERE active;
CREATE UNIQUE INDEX one_active_flag ON rollouts (flag, environment) WHERE active;
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, rollout INTEGER NOT NULL REFERENCES rollouts (id), at REAL NOT NULL, kind TEXT NOT NULL,
  came_from TEXT NOT NULL, went_to TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL
);
CREATE INDEX entries_by_rollout ON entries (rollout, id);
CREATE TABLE commands (
  id INTEGER PRIMARY KEY, rollout INTEGER NOT NULL REFERENCES rollouts (id), at REAL NOT NULL, kind TEXT NOT NULL,
  reason TEXT NOT NULL, result TEXT
);
CREATE TABLE lease (
  one INTEGER PRIMARY KEY CHECK (one = 1), holder TEXT NOT NULL, token INTEGER NOT NULL, until REAL NOT NULL
);
INSERT INTO lease VALUES (1, '', 0, 0);
"""


class Journal:
    """One journal file.

    make: make it if it is not there; False for those who only look.

    Raises:
        RolloutError: from every method, if the file cannot be used; the message names it.
    """

    def __init__(self, path: str | Path, *, make: bool = True) -> None:
        self.path = Path(path)
        if not make and not self.path.exists():
            raise RolloutError(f"there is no journal {self.path}; start a rollout, or name another with --journal")
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=2.0, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
        self._prepare()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- rollouts --------------------------------------------------------------

    def add(self, spec: RolloutSpec, environment: str, now: float) -> Rollout:
        """Begin a rollout in state pending.

        Raises:
            RolloutError: if the name, or the flag in this environment, has a rollout that is not over.
        """
        with self._transaction() as db:
            taken = db.execute(
                "SELECT name, flag, state FROM rollouts WHERE active AND (name = ? OR (flag = ? AND environment = ?))",
                (spec.name, spec.flag, environment),
            ).fetchone()
            if taken is not None:
                raise RolloutError(
                    f"rollout {taken['name']!r} of flag {taken['flag']!r} is {taken['state']}; "
                    f"wait for it, or end it: tidegate rollout abort {taken['name']}"
                )
            made = db.execute(
                "INSERT INTO rollouts VALUES "
                "(NULL, ?, ?, ?, ?, 'pending', 1, 0, 0, ?, ?, '', '', 'null', '{}', '{}', ?, ?, 1)",
                (spec.name, spec.flag, environment, json.dumps(spec.to_mapping()), now, now, now, now),
            )
            self._log(db, cast(int, made.lastrowid), now, "start", "", "pending", f"start {spec.flag}", {})
        return self.get(spec.name)

    def get(self, name: str) -> Rollout:
        """The latest rollout of this name.

        Raises:
            RolloutError: if there was none; the message lists those that there are.
        """
        rows = self._query("SELECT * FROM rollouts WHERE name = ? ORDER BY id DESC LIMIT 1", (name,))
        if not rows:
            names = ", ".join(rollout.name for rollout in self.all()) or "none"
            raise RolloutError(f"{self.path} knows no rollout {name!r}; it knows {names}")
        return rollout_of(rows[0])

    def by_id(self, rollout: int) -> Rollout:
        """The rollout with this number."""
        return rollout_of(self._query("SELECT * FROM rollouts WHERE id = ?", (rollout,))[0])

    def all(self) -> list[Rollout]:
        """The latest rollout of every name, oldest first."""
        return [
            rollout_of(row)
            for row in self._query(
                "SELECT * FROM rollouts WHERE id IN (SELECT max(id) FROM rollouts GROUP BY name) ORDER BY id"
            )
        ]

    def active(self) -> list[Rollout]:
        """The rollouts that are not over."""
        return [rollout_of(row) for row in self._query("SELECT * FROM rollouts WHERE active ORDER BY id")]

    def record(
        self,
        rollout: Rollout,
        kind: str | None,
        *,
        now: float,
        lease: Lease | None = None,
        evidence: Mapping[str, Any] | None = None,
        came_from: State | None = None,
    ) -> Rollout:
        """Write `rollout` in place of what it was read as, and one line of the log if `kind` names one.

        lease: checked in the same transaction; None: a person's tool, which needs none.

        Raises:
            ConflictError: if it was changed since it was read.
            LostLeaseError: if the lease went to somebody else.
        """
        with self._transaction() as db:
            if lease is not None:
                self._check(db, lease)
            changed = db.execute(
                "UPDATE rollouts SET state = ?, active = ?, step = ?, percent = ?, opened = ?, entered = ?, "
                "reason = ?, cause = ?, intent = ?, memory = ?, latest = ?, updated = ?, "
                "version = version + 1 WHERE id = ? AND version = ?",
                (
                    rollout.state,
                    int(rollout.state in ACTIVE),
                    rollout.step,
                    rollout.percent,
                    rollout.opened,
                    rollout.entered,
                    rollout.reason,
                    rollout.cause,
                    json.dumps(asdict(rollout.intent) if rollout.intent else None),
                    json.dumps(dict(rollout.memory)),
                    json.dumps(dict(rollout.latest)),
                    now,
                    rollout.id,
                    rollout.version,
                ),
            )
            if changed.rowcount != 1:
                raise ConflictError(f"rollout {rollout.name} was changed by somebody else")
            if kind is not None:
                before = came_from or rollout.state
                self._log(db, rollout.id, now, kind, before, rollout.state, rollout.reason, evidence or {})
        return self.by_id(rollout.id)

    def entries(self, rollout: int, limit: int = 20) -> list[Entry]:
        """The last lines of a rollout's log, oldest first."""
        rows = self._query("SELECT * FROM entries WHERE rollout = ? ORDER BY id DESC LIMIT ?", (rollout, limit))
        return [
            Entry(
                at=row["at"],
                kind=row["kind"],
                came_from=row["came_from"],
                went_to=row["went_to"],
                reason=row["reason"],
                evidence=json.loads(row["evidence"]),
            )
            for row in reversed(rows)
        ]

    # --- commands --------------------------------------------------------------

    def ask(self, rollout: Rollout, kind: str, reason: str, now: float) -> int:
        """Leave a command for the controller; the answer is its number."""
        with self._transaction() as db:
            made = db.execute("INSERT INTO commands VALUES (NULL, ?, ?, ?, ?, NULL)", (rollout.id, now, kind, reason))
        return cast(int, made.lastrowid)

    def asked(self) -> list[Command]:
        """The commands that nobody has answered, oldest first."""
        return [
            Command(id=row["id"], rollout=row["rollout"], kind=row["kind"], reason=row["reason"])
            for row in self._query("SELECT * FROM commands WHERE result IS NULL ORDER BY id")
        ]

    def answer(self, command: int, result: str) -> None:
        """Say what came of a command."""
        with self._transaction() as db:
            db.execute("UPDATE commands SET result = ? WHERE id = ?", (result, command))

    def answered(self, command: int) -> str | None:
        """What came of a command; None: nothing yet."""
        return cast("str | None", self._query("SELECT result FROM commands WHERE id = ?", (command,))[0]["result"])

    # --- lease -----------------------------------------------------------------

    def acquire(self, holder: str, now: float, ttl: float) -> Lease | None:
        """Take or renew the lease for `ttl` seconds; None if somebody else holds it."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM lease").fetchone()
            if row["holder"] != holder and row["until"] > now:
                return None
            token = row["token"] + (row["holder"] != holder)
            db.execute("UPDATE lease SET holder = ?, token = ?, until = ?", (holder, token, now + ttl))
        return Lease(holder=holder, token=token)

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next holder need not wait for its end."""
        with self._transaction() as db:
            db.execute(
                "UPDATE lease SET until = 0, holder = '' WHERE holder = ? AND token = ?", (lease.holder, lease.token)
            )

    def holder(self, now: float) -> str | None:
        """Who holds the lease now."""
        row = self._query("SELECT * FROM lease")[0]
        return cast(str, row["holder"]) if row["until"] > now else None

    # --- inside ----------------------------------------------------------------

    def _prepare(self) -> None:
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise RolloutError(
                    f"journal {self.path} has format {version}, this version of tidegate writes {SCHEMA_VERSION}; "
                    "use the version that made it, or name another file with --journal"
                )

    def _check(self, db: sqlite3.Connection, lease: Lease) -> None:
        row = db.execute("SELECT holder, token FROM lease").fetchone()
        if (row["holder"], row["token"]) != (lease.holder, lease.token):
            raise LostLeaseError(f"the lease went from {lease.holder} to {row['holder'] or 'nobody'}")

    def _log(
        self,
        db: sqlite3.Connection,
        rollout: int,
        now: float,
        kind: str,
        came_from: str,
        went_to: str,
        reason: str,
        evidence: Mapping[str, Any],
    ) -> None:
        db.execute(
            "INSERT INTO entries VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
            (rollout, now, kind, came_from, went_to, reason, json.dumps(dict(evidence))),
        )

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with self._errors():
            return [dict(row) for row in self._db.execute(statement, values)]

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            folder = Path(self.path).parent
            told = str(error) if folder.is_dir() else f"there is no folder {folder}; make it, or name another journal"
            raise RolloutError(f"journal {self.path} cannot be used: {told}") from error
