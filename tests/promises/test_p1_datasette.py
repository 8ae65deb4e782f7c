"""P1: Datasette, an application that nobody here wrote, answers the same bytes with and without the five layers.

Every address is asked three times: bare, through the layers for the first time, and again; then all of them many times
over in any order, so that hits and misses alternate. What would differ between two requests to the bare application is
frozen, or named in `OWN_EACH_TIME` with its reason.
"""

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from datasette.app import Datasette
from prometheus_client import CollectorRegistry

from tests.driver import Answer, call, scope_of
from tests.promises.test_p1_transparent import Everybody
from tidegate import RoutePolicy, Settings, Tidegate

OURS = frozenset({b"cache-status", b"age", b"etag", b"content-length"})
"""Fields that a layer may add; where Datasette sends one of them itself, it has to arrive."""

OWN_EACH_TIME = {
    "/-/messages": "a form, with a token that is drawn for every request (and Set-Cookie, so it is not stored)",
    "/-/threads.json": "the threads and tasks that happen to run at that moment",
}
"""Addresses whose bytes differ between two requests to Datasette itself: only status and field names are compared."""

POLICIES = (
    RoutePolicy(route="/-/static/{file:path}", ttl=3600, share="public"),
    RoutePolicy(route="/tide/{table}.csv", ttl=3600, share="public"),
)
"""Two things that Datasette sends without a lifetime. For all else its own Cache-Control decides."""


@dataclass(frozen=True)
class Ask:
    """A request. `hits`: whether the second one through the layers is a hit; `status`: what Datasette answers."""

    path: str
    status: int = 200
    hits: bool = True
    query: str = ""
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'?' if self.query else ''}{self.query}"

    def scope(self) -> dict[str, Any]:
        scope = scope_of(unquote(self.path), method=self.method, query=self.query, headers=self.headers)
        return scope | {"raw_path": self.path.encode()}


ASKS = (
    Ask("/", hits=False),  # says nothing about its lifetime
    Ask("/.json", hits=False),
    Ask("/tide"),
    Ask("/tide.json"),
    Ask("/tide", query="sql=select+1"),
    Ask("/tide.json", query="sql=select+name+from+stations+where+id+%3C+%3Amost&most=4"),
    Ask("/tide/stations"),
    Ask("/tide/stations", query="_facet=harbour&_sort_desc=name"),
    Ask("/tide/stations", query="_search=&_next=10"),
    Ask("/tide/stations.json", query="_shape=array"),
    Ask("/tide/stations.json", query="_shape=objects&_labels=on&_size=max"),
    Ask("/tide/stations", method="HEAD"),
    Ask("/tide/stations/1"),
    Ask("/tide/stations/1.json"),
    Ask("/tide/files/a~2Fb"),
    Ask("/tide/above"),
    Ask("/tide/above.json", query="metres=200"),
    # CSV: Datasette sends each line as a message of its own and never says how long it will be
    Ask("/tide/readings.csv", query="_stream=1"),
    Ask("/tide/readings.csv", query="_size=10&_dl=on"),
    Ask("/tide.csv", query="sql=select+1", hits=False),  # no lifetime, no policy
    # redirects
    Ask("/tide/stations", 302, query="_filter_column=harbour&_filter_op=exact&_filter_value=H1", hits=False),
    Ask("/tide/stations/", 302, hits=False),
    # files
    Ask("/-/static/app.css"),
    Ask("/-/static/table.js"),
    Ask("/favicon.ico"),
    Ask("/tide.db", 403, hits=False),  # a database that may change is not handed out
    # errors
    Ask("/tide/stations/99", 404, hits=False),
    Ask("/tide/stations/99.json", 404, hits=False),
    Ask("/nowhere", 404, hits=False),
    Ask("/-/static/nowhere.css", 404, hits=False),  # nor does a policy add a lifetime to an error
    Ask("/tide.json", 400, query="sql=select+nothing", hits=False),
    Ask("/tide", 400, query="sql=update+stations+set+id=1", hits=False),
    Ask("/tide/stations.json", 400, query="_size=1e9", hits=False),
    Ask("/-/permissions", 403, hits=False),
    Ask("/tide", 405, method="PUT", hits=False),
    Ask("/-/settings.json", hits=False),
    *(Ask(path, hits=False) for path in OWN_EACH_TIME),
)


def _database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript("""
            create table stations (id integer primary key, name text, harbour text);
            create table readings (id integer primary key, station integer references stations (id), metres real);
            create table files (name text primary key, data blob);
            insert into files values ('a/b', x'00ff10');
        """)
        db.executemany("insert into stations values (?, ?, ?)", [(n, f"Tide {n} é", f"H{n % 3}") for n in range(1, 31)])
        db.executemany("insert into readings values (?, ?, ?)", [(n, n % 30 + 1, n / 10) for n in range(1, 2001)])
    db.close()


@dataclass(frozen=True)
class Seen:
    bare: Answer
    first: Answer
    again: Answer


async def _visit(bare: Any, layers: Any) -> tuple[dict[Ask, Seen], list[tuple[Ask, Answer]]]:
    seen = {ask: Seen(*[await call(app, scope=ask.scope()) for app in (bare, layers, layers)]) for ask in ASKS}
    order = [ask for ask in ASKS for _ in range(4)]
    random.Random(4).shuffle(order)
    return seen, [(ask, await call(layers, scope=ask.scope())) for ask in order]


@pytest.fixture(scope="module", params=["open", "shut"])
def visit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[bool, dict[Ask, Seen], list[tuple[Ask, Answer]]]]:
    """All that was asked and answered, with every layer open and with every layer shut."""
    path = tmp_path_factory.mktemp("datasette") / "tide.db"
    _database(path)
    queries = {"above": {"sql": "select * from readings where metres > coalesce(nullif(:metres, ''), 199.5)"}}
    site = Datasette(
        [str(path)],
        metadata={"title": "Tides", "databases": {"tide": {"queries": queries}}},
        settings={"default_cache_ttl": 3600},  # for a slow machine: 5 s would do otherwise
    )
    is_open = request.param == "open"
    tide = Tidegate(
        Settings.of({"cache": {"share": "public"}, "flags": {"unit": "session"}}),
        provider=Everybody(is_open),
        properties=lambda _scope: {"sessionId": "one"},
        policies=POLICIES,
        registry=CollectorRegistry(),
    )
    with pytest.MonkeyPatch.context() as patch:
        # Its pages say how many milliseconds the query took.
        patch.setattr("datasette.views.base.time", SimpleNamespace(perf_counter=lambda: 0.0))
        patch.setattr("datasette.handle_exception.rich", None)  # prints each 404 with all its variables
        app: Any = site.app()
        yield is_open, *asyncio.run(_visit(app, tide(app)))
    for database in site.databases.values():
        database.close()
    if site.executor is not None:
        site.executor.shutdown()


def _fields(answer: Answer) -> Counter[tuple[bytes, bytes]]:
    return Counter((name.lower(), value) for name, value in answer.headers)


def _differences(ask: Ask, bare: Answer, through: Answer) -> list[str]:
    """What the layers changed that is not theirs to change."""
    found: list[str] = []
    if through.status != bare.status:
        found.append(f"status {bare.status} became {through.status}")
    wanted, got = _fields(bare), _fields(through)
    if ask.path in OWN_EACH_TIME:
        names = [{name for name, _ in each} - OURS for each in (wanted, got)]
        return found + [f"fields {names[0]} became {names[1]}"] * (names[0] != names[1])
    found += [f"lost {name!r}: {value!r}" for name, value in (wanted - got)]
    found += [f"added {name!r}: {value!r}" for name, value in (got - wanted) if name not in OURS]
    if through.body != bare.body:
        found.append(f"{len(bare.body)} bytes became {len(through.body)}")
    if not through.complete:
        found.append("is not complete")
    return found


def test_every_answer_is_the_same_with_the_layers_and_without(visit: Any) -> None:
    _, seen, replayed = visit
    found = {
        (str(ask), which): differences
        for ask, each in seen.items()
        for which, answer in (("first", each.first), ("again", each.again))
        if (differences := _differences(ask, each.bare, answer))
    }
    assert found == {}
    later = {str(ask): more for ask, answer in replayed if (more := _differences(ask, seen[ask].bare, answer))}
    assert later == {}


def test_datasette_answered_what_the_table_says_so_that_each_kind_was_compared(visit: Any) -> None:
    _, seen, _ = visit
    assert {str(ask): each.bare.status for ask, each in seen.items()} == {str(ask): ask.status for ask in ASKS}
    stream = next(each for ask, each in seen.items() if "_stream" in ask.query)
    assert stream.bare.body.count(b"\r\n") == 2001
    assert len(stream.bare.messages) > 2000
    assert {b"cache-control", b"link", b"location"} <= {
        name for each in seen.values() for name, _ in _fields(each.bare)
    }


def test_what_may_be_stored_is_hit_when_open_and_nothing_is_when_shut(visit: Any) -> None:
    is_open, seen, replayed = visit
    assert {str(ask) for ask, each in seen.items() if each.again.hit} == (
        {str(ask) for ask in ASKS if ask.hits} if is_open else set()
    )
    hits = sum(answer.hit for _, answer in replayed)
    assert hits >= len(replayed) // 2 if is_open else hits == 0


def test_a_stream_of_csv_passes_line_by_line_on_its_way_into_the_store(visit: Any) -> None:
    _, seen, _ = visit
    stream = next(each for ask, each in seen.items() if "_stream" in ask.query)
    pieces = [[message.get("body", b"") for message in answer.messages[1:]] for answer in (stream.bare, stream.first)]
    assert pieces[0] == pieces[1]


def test_pages_with_a_life_of_their_own_do_differ_without_the_layers_too(visit: Any) -> None:
    _, seen, _ = visit
    excluded = {ask.path for ask in seen if ask.path in OWN_EACH_TIME}
    assert excluded == set(OWN_EACH_TIME)
    messages = next(each for ask, each in seen.items() if ask.path == "/-/messages")
    assert len({each.body for each in (messages.bare, messages.first, messages.again)}) == 3
