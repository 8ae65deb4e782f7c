"""Hears of changes in a cluster: one tracking connection to each master, and proof that the masters are still those.

Guaranteed, while `until` lies in the future: as `tracking` has it, for every slot. Each heartbeat asks the master
itself which slots it has: they must be those that it is followed for, none of them on its way to another node, and the
cluster must be well in its eyes. If not, nothing is known until the cluster's slots have been looked at again,
everything was voided, and all masters are followed. So whoever takes slots over (a replica, a new node) is followed
before anything is answered from memory again.

Not guaranteed: that a move of a slot is noticed before the next heartbeat. A purge that has to follow a slot on its way
is pending until the slot has arrived (`redis_cluster`), by when that has been noticed.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from tidegate.errors import StoreError
from tidegate.middleware.stores.redis_cluster import Cluster, Node, Topology, joined
from tidegate.middleware.stores.redis_link import Dial
from tidegate.middleware.stores.tracking import Tracking

__all__ = ["ASKED", "ClusterTracking", "own_slots"]

ASKED: Final = ((b"CLUSTER", b"INFO"), (b"CLUSTER", b"NODES"))
"""What a heartbeat asks a master."""


class Makes(Protocol):
    """Makes what follows one master."""

    def __call__(self, dial: Dial, *, check: Callable[[Sequence[Any]], None]) -> Tracking: ...


class ClusterTracking:
    """Follows all masters of a cluster.

    make: makes what follows one of them. void: called when anything may have been changed.
    """

    def __init__(self, cluster: Cluster, make: Makes, void: Callable[[], None]) -> None:
        self._cluster = cluster
        self._make = make
        self._void = void
        self._expected: Topology = {}
        self._each: dict[Node, Tracking] = {}
        self._started = False
        self._sure = False

    @property
    def until(self) -> float:
        """`time.monotonic()` to which all changes are known."""
        if not self._sure:
            return 0.0
        return min((one.until for one in self._each.values()), default=0.0)

    @property
    def live(self) -> bool:
        """Whether all changes are known now."""
        return time.monotonic() < self.until

    def start(self) -> None:
        """Follow whoever the masters are, from when they are known; ask for them."""
        self._started = True
        self._cluster.topology_changed = self._moved
        for one in self._each.values():
            one.start()
        self.look("the masters are to be followed")

    async def aclose(self) -> None:
        """Stop: from now on nothing is known."""
        self._started = self._sure = False
        self._cluster.topology_changed = None
        each, self._each = self._each, {}
        for one in each.values():
            await one.aclose()
        self._expected = {}

    def look(self, why: str) -> None:
        """Have the cluster's slots looked at again."""
        with suppress(StoreError):  # it is being closed
            self._cluster.renew(why)

    def _moved(self, topology: Topology | None) -> None:
        """The slots by master as they are now; None: they are not known."""
        if not self._started:
            return
        if topology is None:
            self._sure = False
            return
        if topology != self._expected:
            self._sure = False
            self._void()
            for node in self._each.keys() - topology.keys():
                self._each.pop(node).stop()
            self._expected = topology
            for one in self._each.values():
                one.renew("the slots of the cluster have moved")  # each proves anew what it has
            for node in topology.keys() - self._each.keys():
                self._each[node] = one = self._make(self._cluster.dial_to(node), check=self._checks(node))
                one.start()
        self._sure = True

    def _checks(self, node: Node) -> Callable[[Sequence[Any]], None]:
        def check(replies: Sequence[Any]) -> None:
            info, nodes = replies
            if b"cluster_state:ok" not in info:
                raise StoreError(f"{node[0]}:{node[1]} says that the cluster is not well")
            if own_slots(nodes) != self._expected.get(node):
                self._sure = False
                self.look("a master has other slots")
                raise StoreError(f"{node[0]}:{node[1]} has other slots than it had, or some are on their way")

        return check


def own_slots(nodes: bytes) -> tuple[tuple[int, int], ...] | None:
    """The slots, as ranges, of the node that answered CLUSTER NODES; None: it is no master, or one is on its way."""
    for line in nodes.splitlines():
        _, _, flags, _, _, _, _, _, *slots = line.split(b" ")
        if b"myself" not in flags.split(b","):
            continue
        if b"master" not in flags.split(b",") or any(slot.startswith(b"[") and b"->-" in slot for slot in slots):
            return None
        ranges = [slot.partition(b"-") for slot in slots if not slot.startswith(b"[")]
        return joined((int(first), int(last or first)) for first, _, last in ranges)
    return None
