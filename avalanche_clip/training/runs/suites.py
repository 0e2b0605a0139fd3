"""Suites attached to a run: checked before it, scored at its evaluation points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import TextLogger

from avalanche_clip.common.checks import require_distinct, require_type
from avalanche_clip.common.plain import plain
from avalanche_clip.common.randomness import evaluating, kept_rng
from avalanche_clip.evaluation.metrics._values import bare_model
from avalanche_clip.evaluation.suites.suite import Suite
from avalanche_clip.training.templates.contract import defines
from avalanche_clip.training.templates.settings import as_stored

BEFORE = "before"
"""Row of the model before the stream; the others are numbers of evaluation points."""

Rows = dict[str, dict[str, dict[str, float]]]
"""row -> task -> metric -> value."""


class RunSuites:
    """The suites of a run, and what they found so far.

    :param suites: with different names; a mapping is refused, names are their own.
    :raises TypeError: for what is no :class:`Suite`.
    :raises ValueError: for two of one name.
    """

    def __init__(self, suites: Sequence[Suite]):
        give = "a list of suites, such as [ZeroShotSuite(...)]"
        require_type(suites, Sequence, "suites", give)
        for suite in suites:
            require_type(suite, Suite, "an entry of suites", give)
        require_distinct([suite.name for suite in suites], "the names of suites")
        self.suites = list(suites)
        self.rows: dict[str, Rows] = {suite.name: {} for suite in suites}

    def check(self, strategy: Any) -> None:
        """Refuse what cannot be scored, before anything is trained.

        :raises ValueError: if a suite refuses the model or its data, or a plugin
            evaluates in another way than the model alone does.
        """
        routed = [c for c in strategy.contracts if c.routes_batches]
        own = routed + [c for c in strategy.contracts if defines(c, "class_logits")]
        if own and self.suites:
            raise ValueError(
                f"suites={[suite.name for suite in self.suites]} score the model "
                f"alone, but {type(own[0].wrapped).__name__} chooses what each image "
                "passes or how it is classified, so that the figures would be those "
                "of another model; leave suites out, and evaluate streams."
            )
        for suite in self.suites:
            suite.check(bare_model(strategy))

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the stored one."""
        return {s.name: as_stored(s.identity()) for s in self.suites}

    def begin(self) -> None:
        """Forget what the suites keep of an earlier run."""
        for suite in self.suites:
            suite.load_state_dict({})

    def evaluate(self, strategy: Any, row: int) -> None:
        """Score the model with each suite, and tell the loggers.

        Weights, modes, last features and random generators are put back.

        :param strategy: between experiences.
        :param row: number of the evaluation, 0 before the stream.
        """
        model, evaluator = bare_model(strategy), strategy.evaluator
        row_name = BEFORE if row == 0 else str(row - 1)
        step = strategy.clock.train_iterations
        for suite in self.suites:
            features = model.features
            with evaluating(model), kept_rng(strategy.device):
                found = suite.evaluate(
                    model, device=strategy.device, autocast=strategy.autocast
                )
            model.features = features
            values = self.rows[suite.name][row_name] = {
                str(task): {str(metric): float(v) for metric, v in metrics.items()}
                for task, metrics in found.items()
            }
            for task, metrics in values.items():
                for metric, value in metrics.items():
                    name = f"{metric}/suite/{suite.name}/{task}"
                    mval = MetricValue(suite.name, name, value, step)
                    evaluator.publish_metric_value(mval)
        if self.suites:
            evaluator.after_suites(strategy)  # a moment that loggers may have
        for log in evaluator.loggers if self.suites else ():
            if isinstance(log, TextLogger):  # which prints at moments of its own
                log.file.write("> Suites ended.\n")
                log.print_current_metrics()
                log.metric_vals = {}

    def state_dict(self) -> dict[str, Any] | None:
        """Rows so far, and what later ones depend on; None without suites."""
        if not self.suites:
            return None
        states = {s.name: s.state_dict() for s in self.suites}
        return {"rows": self.rows, "states": plain(states, "the state of suites")}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Put back what :meth:`state_dict` returned; None of a run without suites."""
        if state is None:
            return
        self.rows = {**self.rows, **state["rows"]}
        for suite in self.suites:
            suite.load_state_dict(state["states"][suite.name])

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds of them; nothing without suites."""
        if not self.suites:
            return {}
        missing = {s.name: dict(s.missing) for s in self.suites if s.missing}
        return {"suites": self.rows, **({"suites_missing": missing} if missing else {})}
