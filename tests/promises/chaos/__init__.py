"""Chaos for P4: readers and writers in processes of their own on one Redis, connections that die and links that go
silent; judged afterwards by what each call saw and when.

`python -m tests.promises.chaos` (`make chaos`) runs it longer than the suite does.
"""

from tests.promises.chaos.stage import Kind, Plan, play
from tests.promises.chaos.verdict import Call, Done, Failover, Silence, Verdict, judge

__all__ = ["Call", "Done", "Failover", "Kind", "Plan", "Silence", "Verdict", "judge", "play"]
