"""Why two answers to one key differ: told from several sights of it, or not told at all. Pure.

Answers that differ are laid to what goes with the difference: to who asked, to a request field, or (the same asker sent
the same fields and got something else) to time. One pair of answers proves little: whoever asked second is somebody
else, sends other fields, and asks later. So a cause is told only once

- time: one asker with the same fields got two answers. That leaves nothing else that we can see.
- who, or a field: every value went with one answer only, that held for `REPEATS` repetitions, and some value came back
  to its answer after another value had got a different one, which time does not do.

Where several causes would explain all sights (ann always sends `de`), nothing is told before `PATIENCE` sights.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tidegate.middleware.core.shadow import MAX_FIELDS, Named, Sight

__all__ = ["ADVICE", "PATIENCE", "Finding", "Kind", "Told", "tell"]

Kind = Literal["share-too-wide", "missing-vary", "body-over-time", "per-user-header", "unstable-order"]

ADVICE: Final[dict[Kind, str]] = {
    "share-too-wide": "who asks decides what the body is: narrow the policy's share",
    "missing-vary": "a request field decides what the answer is: name it in Vary, or in the policy's vary",
    "body-over-time": "the same request got another answer, and nothing was purged: purge where the data is written,"
    " or take the time, a counter or a random value out of the body",
    "per-user-header": "who asks decides what a response field says: take it out, or narrow the share",
    "unstable-order": "the same JSON in another order: sort what the app serialises",
}
"""What to do about each kind."""

REPEATS: Final = 5
PATIENCE: Final = 16
NOISE: Final = 12
"""A request field with another value in each of so many sights names single requests, and is no cause."""

_OF_THE_BODY: Final = frozenset({"etag", "last-modified", "content-md5", "digest", "content-digest", "repr-digest"})
"""Response fields that change with the body, and are no news when it differs."""

_WHO: Final = ""
_TENANT: Final = "\x00"
_TIME: Final = "\n"


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake. field: the request field of a missing Vary, the response field of a per-user header; else empty."""

    kind: Kind
    field: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What could be told: mistakes, and response fields that differ from answer to answer and mean nothing."""

    findings: tuple[Finding, ...]
    volatile: frozenset[str]


def tell(sights: Sequence[Sight], volatile: frozenset[str] = frozenset()) -> Told:
    """The causes that these sights of one key prove.

    sights: in the order of time, between two purges.
    volatile: response fields that are known to mean nothing.
    """
    causes = _Causes(sights)
    orders = {sight.body: sight.order for sight in sights if sight.order}
    contents = [(sight.status, orders.get(sight.body, sight.body)) for sight in sights]
    findings: list[Finding] = []
    if len(set(contents)) < len({(sight.status, sight.body) for sight in sights}):
        findings.append(Finding("unstable-order"))
    of_body = causes.of(contents)
    for cause in of_body:
        findings.append(_finding_of_body(cause))
    differ = len({sight.body for sight in sights}) > 1
    meaningless: set[str] = set()
    headers = [dict(sight.headers) for sight in sights]
    for name in _often([sight.headers for sight in sights]):
        if name in volatile or (differ and name in _OF_THE_BODY):
            continue
        values = [fields.get(name) for fields in headers]
        for cause in causes.of(values):
            if cause == _TIME:
                if not differ:
                    meaningless.add(name)
            elif cause not in of_body:  # else it goes with the body, which is told already
                findings.append(Finding("missing-vary", cause) if cause else Finding("per-user-header", name))
    return Told(tuple(dict.fromkeys(findings)), frozenset(meaningless))


def _finding_of_body(cause: str) -> Finding:
    if cause == _TIME:
        return Finding("body-over-time")
    return Finding("missing-vary", cause) if cause else Finding("share-too-wide")


class _Causes:
    """What the sights of one key differ in, beside their answers."""

    def __init__(self, sights: Sequence[Sight]) -> None:
        self._who: list[Hashable] = [sight.who for sight in sights]
        self._tenants: list[Hashable] = [sight.tenant for sight in sights]
        asked = [dict(sight.asked) for sight in sights]
        names = _often([sight.asked for sight in sights])
        by_name: dict[str, list[Hashable]] = {name: [fields.get(name) for fields in asked] for name in names}
        enough = len(sights) >= NOISE
        self._fields = {
            name: values
            for name, values in by_name.items()
            if len(set(values)) > 1 and not (enough and len(set(values)) == len(values))
        }
        self._everything: list[Hashable] = list(zip(self._who, *self._fields.values(), strict=True))

    def of(self, answers: Sequence[Hashable]) -> tuple[str, ...]:
        """The request fields that the answers depend on, _WHO for the asker, _TIME; empty: not told."""
        if len(set(answers)) < 2:
            return ()
        if not _is_function(self._everything, answers):
            return (_TIME,)
        candidates = {_WHO: self._who, _TENANT: self._tenants, **self._fields}
        explaining = {name: values for name, values in candidates.items() if _explains(values, answers)}
        if not explaining:
            return self._pair(answers)
        # Whoever is told apart by tenant is told apart by name too: those two are one explanation.
        possible = [name for name, values in candidates.items() if name != _TENANT and _is_function(values, answers)]
        if len(possible) > 1 and len(answers) < PATIENCE:
            return ()
        # The coarsest: if all who send `de` get the same, it is not that they are different people.
        cause = min(explaining, key=lambda name: (len(set(explaining[name])), name))
        return (_WHO if cause == _TENANT else cause,)

    def _pair(self, answers: Sequence[Hashable]) -> tuple[str, ...]:
        """Who asked and one field together, where neither alone explains anything."""
        if len(answers) < PATIENCE or _is_function(self._who, answers):
            return ()
        for name, values in self._fields.items():
            both: list[Hashable] = list(zip(self._who, values, strict=True))
            if not _is_function(values, answers) and _explains(both, answers):
                return (_WHO, name)
        return ()


def _often(fields: Sequence[Named]) -> list[str]:
    """The names that most sights have: somebody who invents names must not make the rest long (P6) or push it out."""
    counted = Counter(name for named in fields for name, _ in named)
    return [name for name, _ in counted.most_common(MAX_FIELDS)]


def _is_function(causes: Sequence[Hashable], answers: Sequence[Hashable]) -> bool:
    """Whether no value of the cause went with two answers."""
    seen: dict[Hashable, Hashable] = {}
    return all(seen.setdefault(cause, answer) == answer for cause, answer in zip(causes, answers, strict=True))


def _explains(causes: Sequence[Hashable], answers: Sequence[Hashable]) -> bool:
    """Whether each value went with one answer, often enough, and one came back to its own after another one's."""
    if len(causes) - len(set(causes)) < REPEATS or not _is_function(causes, answers):
        return False
    last = {cause: at for at, cause in enumerate(causes)}
    first = {cause: causes.index(cause) for cause in last}
    return any(answers[at] != answers[first[cause]] for cause in last for at in range(first[cause] + 1, last[cause]))
