"""What Tidegate costs, measured in one process: `python -m tests.bench`, or `make bench`.

A module of this package that has `BENCHES`, names with what they measure, is found by itself.
"""
