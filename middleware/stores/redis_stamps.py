"""What the stamps in Redis say of an entry; `redis_purge` says how they are written."""

from collections.abc import Sequence

from tidegate.errors import StoreError

__all__ = ["VOID", "judge", "stamp_of"]

VOID = -1
"""In the place of a soft purge's stamp: the entry is void."""


def stamp_of(value: bytes | None) -> int:
    """A position's or a floor's number; 0 where there is none.

    Raises:
        StoreError: if it is none.
    """
    if value is None:
        return 0
    try:
        return int(value)
    except ValueError as error:
        raise StoreError(f"redis: {value[:20]!r} is no stamp") from error


def judge(keys: Sequence[bytes], values: Sequence[bytes | None], limits: Sequence[int]) -> int:
    """VOID, or the stamp of the last soft purge that made the entry stale, or 0: it stands as it is.

    keys, values: of all the stamps that concern it. limits: the entry's position for each.

    Raises:
        StoreError: if something is no stamp.
    """
    soft = 0
    for value, limit in zip(values, limits, strict=True):
        if value is None:
            continue
        try:
            if int(value) > limit:
                return VOID
        except ValueError:
            told = _judge_more(keys, value, limit)
            if told == VOID:
                return VOID
            soft = max(soft, told)
    return soft


def _judge_more(keys: Sequence[bytes], value: bytes, limit: int) -> int:
    """Of a stamp that tells of more than a hard purge of one tag."""
    hard, *more = value.split(b" ")
    if stamp_of(hard) > limit:
        return VOID
    soft = 0
    for word in more:
        kind, _, number = word.rpartition(b"=")
        at = stamp_of(number)
        if at <= limit:
            continue
        how, with_others, others = kind.partition(b"&")
        # Hashed with their scope: another scope's tag of the same name is another name.
        if with_others and not {key.rpartition(b":")[2] for key in keys}.issuperset(others.split(b",")):
            continue
        if how != b"~":
            return VOID
        soft = max(soft, at)
    return soft
