"""What the law of right answers is told of an app: what it says, the versions that it has, and who asks for what."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from hypothesis import strategies as st

from tests.driver import User
from tidegate.middleware.core.message import format_date

START = 1_700_000_000.0
PATHS = ("/a", "/b")
USERS = (User("acme", "ann"), User("acme", "ben"), User("evil", "eve"))
RANGES = ("bytes=0-9", "bytes=0-19", "bytes=10-", "bytes=5-24", "bytes=20-", "bytes=-9", "bytes=0-3,6-8", "bytes=999-")


@dataclass(frozen=True)
class Said:
    """What the app says of what it has, beside the version: directives with their values, and other fields."""

    control: tuple[tuple[str, int | None], ...] = (("max-age", 60),)
    targeted: tuple[tuple[str, int | None], ...] = ()
    expires: int | None = None
    age: int = 0
    skew: int = 0
    vary: tuple[str, ...] = ()
    etag: str = "strong"
    modified: bool = False
    cookie: bool = False
    group: bool = False

    @property
    def counts(self) -> dict[str, int | None]:
        """The directives that decide."""
        return dict(self.targeted or self.control)


@dataclass(frozen=True)
class Version:
    """One representation. vary: names and values of the request fields that it was chosen by."""

    path: str
    number: int
    vary: tuple[tuple[str, str | None], ...]
    kind: str
    modified: bool

    @cached_property
    def body(self) -> bytes:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:30].encode()

    @cached_property
    def etag(self) -> str | None:
        tag = '"' + hashlib.sha256(b"tag" + repr(self).encode()).hexdigest()[:12] + '"'
        return {"strong": tag, "weak": "W/" + tag}.get(self.kind)

    @cached_property
    def last_modified(self) -> str | None:
        return format_date(START - 100_000 + 10 * self.number).decode() if self.modified else None


@dataclass(frozen=True)
class Known:
    """An answer of the app's, as a cache may have stored it. at: when; turn: of which it was the app's."""

    version: Version
    said: Said
    tenant: str
    at: float
    turn: int
    kept: bool
    selected: frozenset[tuple[str, str | None]]
    names: frozenset[str]

    def lifetime(self) -> float | None:
        counts = self.said.counts
        for name in ("s-maxage", "max-age"):
            if name in counts:
                return float(counts[name] or 0)
        if not self.said.targeted and self.said.expires is not None:
            return max(0.0, float(self.said.expires))
        if self.version.modified:
            since = self.at + self.said.skew - (START - 100_000 + 10 * self.version.number)
            return min(86_400.0, max(0.0, since / 10))
        return 0.0 if "no-cache" in counts else None

    def may_be_stored(self) -> bool:
        counts = self.said.counts
        forbidden = {"no-store", "private"} & counts.keys()
        return (
            self.kept
            and not forbidden
            and not self.said.cookie
            and "*" not in self.names
            and self.lifetime() is not None
        )

    def age(self, now: float) -> float:
        return now - self.at + max(self.said.age, -self.said.skew, 0)

    @property
    def strict(self) -> bool:
        return bool({"must-revalidate", "s-maxage", "no-cache"} & self.said.counts.keys())


@dataclass(frozen=True)
class Asked:
    """A request. wants: its directives."""

    path: str
    user: User
    method: str = "GET"
    fields: tuple[tuple[str, str], ...] = ()
    range: str | None = None
    condition: tuple[str, str] | None = None
    wants: tuple[tuple[str, int | None], ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        lines = list(self.fields)
        lines += [("range", self.range)] if self.range else []
        lines += [self.condition] if self.condition else []
        return lines + ([("cache-control", written(self.wants))] if self.wants else [])


def written(control: tuple[tuple[str, int | None], ...]) -> str:
    return ", ".join(name if value is None else f"{name}={value}" for name, value in control)


SECONDS = st.sampled_from([0, 5, 10, 60, 600])
CONTROL = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["max-age", "max-age", "max-age", "s-maxage"]), SECONDS),
        st.tuples(st.sampled_from(["stale-while-revalidate", "stale-if-error"]), st.sampled_from([0, 30, 100])),
        st.tuples(st.sampled_from(["no-store", "no-cache", "private", "public", "must-revalidate"]), st.none()),
    ),
    max_size=4,
    unique_by=lambda each: each[0],
).map(tuple)
SAYS = st.builds(
    Said,
    control=st.one_of(st.just((("max-age", 60),)), CONTROL),
    targeted=st.one_of(st.just(()), st.just(()), CONTROL),
    expires=st.sampled_from([None, None, None, -5, 20, 300]),
    age=st.sampled_from([0, 0, 0, 7, 70]),
    skew=st.sampled_from([0, 0, 0, -9, 50]),
    vary=st.sampled_from([(), (), (), ("x",), ("x", "y"), ("*",)]),
    etag=st.sampled_from(["strong", "strong", "strong", "weak", ""]),
    modified=st.booleans(),
    cookie=st.sampled_from([False, False, False, False, True]),
    group=st.booleans(),
)
WANTS = st.sampled_from(
    [(), (), (), (), (("no-cache", None),), (("no-store", None),), (("max-age", 5),), (("max-stale", None),),
     (("max-stale", 20),), (("min-fresh", 8),), (("only-if-cached", None),)]
)  # fmt: skip
FIELDS = st.sampled_from([(), (), (), (("x", "1"),), (("x", "2"),), (("x", "1"), ("y", "1"))])
CLEARING = [(), (), (("location", "/b"),), (("content-location", "/a"),), (("cache-group-invalidation", '"g"'),)]
PATH, USER = st.sampled_from(PATHS), st.sampled_from(USERS)
