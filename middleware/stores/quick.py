"""The short way of a look-up in a remote store: one question that was asked before, and its answer. Most hits of a warm
store go this way.

What it does is what `GuardedStore` does with every look-up: circuit, deadline, counts. It does so in one coroutine, and
leaves to the long way whatever is not as usual: an open circuit, a request that has waited already, a store that cannot
be asked in this way now or needs to ask for more.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from tidegate.errors import StoreError
from tidegate.middleware.breaker import Breaker, Ticket
from tidegate.middleware.stores.base import Asks, Entry, Lookup, ReadsOnlyError, Waiting
from tidegate.middleware.stores.meters import Meter
from tidegate.middleware.stores.pending import PendingPurges
from tidegate.middleware.stores.stepping import Answers

__all__ = ["UNKNOWN", "Quick"]

UNKNOWN: Final = Lookup(None, None)
"""The answer of a store that could not tell."""


class Quick:
    """The short way to one store.

    budget: seconds that an answer may take.
    pending: the purges that the store has not accepted yet.
    longer: goes the long way.
    """

    def __init__(
        self,
        store: Asks,
        *,
        breaker: Breaker,
        meter: Meter,
        budget: float,
        pending: PendingPurges,
        longer: Callable[[Waiting, bytes, Sequence[str]], Coroutine[Any, Any, Lookup]],
        clock: Callable[[], float],
    ) -> None:
        self._ask = store.ask
        self._told = store.told
        self._refusal = store.refusal
        self._breaker = breaker
        self._meter, self._ok, self._observe = meter, meter.ok, meter.observe
        self._expire = Answers(budget).begin
        self._budget = budget
        self._pending = pending
        self._longer = longer
        self._clock = clock

    def begin(self, who: Waiting, key: bytes, scopes: Sequence[str]) -> Coroutine[Any, Any, Lookup] | None:
        """What the store inside says within the budget; else a miss without positions. None: it is not for this way."""
        ticket = self._breaker.closed
        if ticket is None or who.waited:
            return None
        try:
            asked = self._ask(key, scopes)
        except StoreError:
            return None  # as it will say again
        return self._answer(who, key, scopes, ticket, *asked) if asked is not None else None

    async def _answer(
        self, who: Waiting, key: bytes, scopes: Sequence[str], ticket: Ticket, future: Any, about: Any
    ) -> Lookup:
        began = self._clock()
        waits = self._expire(future)
        try:
            found = self._told(key, scopes, about, await future)
        except Exception as error:  # noqa: BLE001 - P5; counted
            told = self._refusal(error)
            self._breaker.report(ticket, failed=not isinstance(told, ReadsOnlyError))
            self._meter.failed(told, self._budget)
            who.waited += self._clock() - began
            return UNKNOWN
        except BaseException:
            self._breaker.abandon(ticket)
            raise
        finally:
            waits.clear()
        took = self._clock() - began
        who.waited += took
        self._breaker.report(ticket, failed=False)
        self._ok()
        self._observe(took)
        if found is None:
            return await self._longer(who, key, scopes)
        pending = self._pending
        if pending.count and type(found.record) is Entry and pending.concern(found.record):
            return Lookup(None, found.positions)
        return found
