"""Counts the hits that the straight function answers: the layers themselves have no need to know."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tidegate.middleware.layers.fused import FusedHits

__all__ = ["hits_taken"]


@contextmanager
def hits_taken() -> Generator[Counter[FusedHits]]:
    """How many each of those has answered that are made, and asked, meanwhile."""
    taken = Counter[FusedHits]()

    def counted(answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(hits: FusedHits, *of: Any) -> Any:
            answered = answer(hits, *of)
            taken[hits] += answered is not None
            return answered

        return ask

    with (
        patch.object(FusedHits, "find", counted(FusedHits.find)),
        patch.object(FusedHits, "late", counted(FusedHits.late)),
    ):
        yield taken
