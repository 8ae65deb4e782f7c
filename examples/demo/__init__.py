"""The main job, seen: a canary that opens while the numbers hold, and shuts by itself when they turn.

`python -m examples.demo` runs it on embedded parts, `python -m examples.demo --real` on real servers.
"""
