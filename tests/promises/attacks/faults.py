"""The defences that attacks are up against, each as a fault that takes it out."""

from collections.abc import Callable
from typing import Any

from tests.promises.attacks.planting import Plant
from tidegate.middleware.core.identity import Identity

__all__ = [
    "ANY_STATUS",
    "NOBODY_CHECKED",
    "ONE_TENANT",
    "blind_answer",
    "blind_request",
    "blind_sharing",
    "key_without",
    "narrowing",
]


def _without(name: bytes, pairs: Any) -> list[tuple[bytes, bytes]]:
    return [(field, value) for field, value in pairs if field.lower() != name]


def narrowing(name: str, target: str, **changed: Callable[[Any], Any]) -> Plant:
    """A function to which some keyword arguments come changed."""

    def by(original: Any) -> Any:
        def fake(*args: Any, **given: Any) -> Any:
            return original(*args, **{key: changed[key](v) if key in changed else v for key, v in given.items()})

        return fake

    return Plant(name=name, target=target, by=by)


def blind_answer(field: bytes) -> Plant:
    """Whoever decides what is stored does not see a field of the response."""
    name = f"storing without a look at {field.decode()}"
    return narrowing(name, "middleware.core.storing:judge_response", headers=lambda pairs: _without(field, pairs))


def blind_sharing(field: bytes) -> Plant:
    """Whoever decides what followers get does not see a field of the response."""

    def by(original: Any) -> Any:
        return lambda status, headers, **more: original(status, _without(field, headers), **more)

    name = f"coalescing without a look at the answer's {field.decode()}"
    return Plant(name=name, target="middleware.core.sharing:judge_answer", by=by)


def blind_request(*fields: bytes) -> Plant:
    """Whoever decides whether a request may use the cache does not see some of its fields."""

    def blind(pairs: Any) -> Any:
        return [pair for pair in pairs if pair[0] not in fields]

    name = f"requests without a look at {fields[0].decode()}"
    return narrowing(name, "middleware.core.storing:judge_request", headers=blind)


def key_without(part: str, value: Any) -> Plant:
    """Keys that do not hold a part."""
    return narrowing(f"keys without {part}", "middleware.core.keys:primary_parts", **{part: lambda _given: value})


ONE_TENANT = key_without("identity", Identity("everybody", "everybody"))
"""All identities have one key."""

NOBODY_CHECKED = Plant(
    name="no request carries a credential",
    target="middleware.core.identity:Credentials.present",
    by=lambda _original: lambda *_args, **_given: False,
)

ANY_STATUS = narrowing(
    "every status is stored as 200 is", "middleware.core.storing:judge_response", status=lambda _given: 200
)
