"""Suites attached to a run: checked before it, scored at its evaluation points."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import TextLogger
from torch import Tensor

from avalanche_clip.common.checks import require_distinct, require_type
from avalanche_clip.common.plain import as_stored, plain
from avalanche_clip.common.randomness import evaluating, kept_rng
from avalanche_clip.evaluation.metrics._values import bare_model
from avalanche_clip.evaluation.suites.suite import Suite
from avalanche_clip.training.templates.contract import PluginContract, defines, routed

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

    def check(self, strategy: Any, benchmark: Any) -> None:
        """Refuse what cannot be scored, before anything is trained.

        :raises ValueError: if a suite refuses the model or its data, or a plugin has
            no rule for them.
        """
        for contract in strategy.contracts if self.suites else ():
            contract.check_suites(strategy, benchmark)
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
            features, before = model.features, dict(suite.features.encoded)
            kept = kept_rng(strategy.device)
            with evaluating(model), kept, _routing(strategy, suite):
                found = suite.evaluate(
                    model, device=strategy.device, autocast=strategy.autocast
                )
            model.features = features
            now = suite.features.encoded
            spent = {what: count - before[what] for what, count in now.items()}
            strategy.compute.spend_evaluation(**spent)
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


class _Routing:
    """What a strategy lets images and texts pass that belong to no stream.

    :param strategy: with plugins that choose it.
    :param contracts: of these plugins.
    """

    def __init__(self, strategy: Any, contracts: list[Any]):
        self.strategy, self.contracts = strategy, contracts
        self.used = False

    def state(self) -> bytes:
        """Hash settings and state of the plugins."""
        file = io.BytesIO()
        parts = [(c.identity(), c.stateless or c.state_dict()) for c in self.contracts]
        torch.save(parts, file)
        return hashlib.sha256(file.getbuffer()).digest()

    @contextmanager
    def images(self, batch: Tensor) -> Iterator[Tensor]:
        """Route images like a batch of an evaluation."""
        strategy = self.strategy
        strategy.mbatch = [{"image": batch}]
        with routed(strategy, strategy.mb_x):
            found = [c.image_variants(strategy) for c in self.contracts]
            known = [variants for variants in found if variants is not None]
            yield known[0] if known else torch.full((len(batch),), -1)

    @contextmanager
    def texts(self, variant: int) -> Iterator[None]:
        """Let texts pass the variant of a routed image."""
        with ExitStack() as stack:
            for contract in self.contracts:
                stack.enter_context(contract.variant_context(self.strategy, variant))
            yield


@contextmanager
def _routing(strategy: Any, suite: Suite) -> Iterator[None]:
    """Let a suite score what is deployed, if plugins choose what images pass.

    :raises ValueError: if it encodes images in another way than by its features.
    """
    own = [c for c in strategy.contracts if _routes(c)]
    if not own:
        yield
        return
    names = ("mbatch", "experience", "is_training")
    kept = [getattr(strategy, name) for name in names]
    routing = suite.features.routing = _Routing(strategy, own)
    strategy.experience, strategy.is_training = None, False
    try:
        yield
    finally:
        suite.features.routing = None
        for name, value in zip(names, kept, strict=True):
            setattr(strategy, name, value)
    if not (routing.used or suite.missing):
        raise ValueError(
            f"The suite {suite.name!r} does not ask its features for images, but "
            f"{type(own[0].wrapped).__name__} chooses what each of them passes; use "
            "Suite.features, or leave the suite out."
        )


def _routes(contract: Any) -> bool:
    """Whether a plugin, also one under the former name, routes batches."""
    former = isinstance(contract, PluginContract) and contract.has("image_context")
    return former or contract.routes_batches or defines(contract, "route_batch")
