"""Runnable examples: one layer on one app, the whole gate, and the demo."""
