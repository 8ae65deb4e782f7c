"""The families of commands of `tidegate`: one module each, with a `register` that `tidegate.cli` calls.

A family's module holds its arguments and what it prints. It imports what it needs inside the command: an extra may be
absent, and `--help` must work all the same.
"""
