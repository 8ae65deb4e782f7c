"""What a worker does when a layer's gate is shut for everybody, and when it opens again (P1, P4).

Guaranteed, in every worker:
- Whoever waits in a layer that is shut for everybody is sent on; what the layer has begun for others goes on.
- Each opening of the cache's gate after that begins a new epoch: nothing that was stored before is served. From the
  moment at which this worker sees the gate shut, and again before it decides the first request for which the gate is
  open, it refuses every older entry; whether the store can be reached or not, and until the store has accepted that.
- A worker that starts while the gate is open begins no epoch: a deployment does not cool the cache. One that starts
  while it is shut does.
- A hit pays nothing for epochs. A new one is a purge of the scope in which every entry has its own URI's tag.

Not guaranteed:
- That an epoch begins where no worker saw the gate shut: it came and went between two looks of all of them
  (`flags.poll_interval`), or none was running.
- That a worker which has not seen the opening, or was started after it, refuses what is older before the store has
  accepted the purge of one that has.
- That an application which shares Redis with this one, and the flag, keeps its entries.

A gate that its flag's age shuts (P8: no news for 60 s) is shut like any other.
"""

from collections.abc import Callable, Mapping

from tidegate.flags import Gates, Reach
from tidegate.vocabulary import Layer

__all__ = ["Hook", "Openings"]

Hook = Callable[[bool], None]
"""Called with True when a layer is shut for everybody, with False when it opens again. In any thread; never waits."""


class Openings:
    """Tells the layers when they are shut for everybody, and when they open again.

    A hook hears True once the gate is known to be shut, which may be at the start, and False only after that.
    """

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._shut: set[str] = set()
        self._hooks: dict[str, list[Hook]] = {}
        gates.subscribe(self._changed)

    def tell(self, layer: Layer, hook: Hook) -> None:
        """Let a hook hear of a layer; at once, if it is shut."""
        self._hooks.setdefault(layer, []).append(hook)
        if layer in self._shut:
            hook(True)

    def _changed(self, _before: Mapping[str, Reach], after: Mapping[str, Reach]) -> None:
        if not self._gates.known:
            return
        for layer, reach in after.items():
            shut = reach == "nobody"
            if shut != (layer in self._shut):
                (self._shut.add if shut else self._shut.discard)(layer)
                for hook in tuple(self._hooks.get(layer, ())):
                    hook(shut)
