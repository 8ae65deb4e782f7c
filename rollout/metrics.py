"""The controller's own Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from tidegate.rollout.analysis import Verdict
from tidegate.rollout.machine import State
from tidegate.rollout.records import Rollout

__all__ = ["RolloutMetrics"]

_OUTCOMES = {"good": 1, "unknown": 0, "bad": -1}


class RolloutMetrics:
    """What the controller counts, on a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.state = Gauge(
            "tidegate_rollout_state", "1 for the state that a rollout is in.", ["rollout", "state"], registry=registry
        )
        self.percent = Gauge(
            "tidegate_rollout_step_percent", "Percentage that the flag is open to.", ["rollout"], registry=registry
        )
        self.verdict = Gauge(
            "tidegate_rollout_verdict",
            "Last verdict on an objective: 1 good, 0 unknown, -1 bad.",
            ["rollout", "objective"],
            registry=registry,
        )
        self.holds = Counter(
            "tidegate_rollout_holds", "Ticks that held, by cause.", ["rollout", "cause"], registry=registry
        )
        self.ticks = Counter("tidegate_rollout_ticks", "Ticks done.", ["rollout"], registry=registry)
        self.errors = Counter(
            "tidegate_rollout_errors",
            "Failures, by what failed: metrics, flag, stops, journal, controller, web.",
            ["component"],
            registry=registry,
        )
        self.leader = Gauge("tidegate_rollout_leader", "1 while this controller holds the lease.", registry=registry)
        for component in ("metrics", "flag", "stops", "journal", "controller", "web"):
            self.errors.labels(component)

    def show(self, rollout: Rollout) -> None:
        """Show where a rollout is."""
        for state in State:
            self.state.labels(rollout.name, state).set(state is rollout.state)
        self.percent.labels(rollout.name).set(rollout.percent)

    def judged(self, rollout: Rollout, verdicts: tuple[Verdict, ...]) -> None:
        """Show the verdicts of a tick."""
        for verdict in verdicts:
            self.verdict.labels(rollout.name, verdict.objective).set(_OUTCOMES[verdict.outcome])
