"""Runs of rows that are compared: in parts, in other precision, in two processes."""

from functools import cache
from unittest import mock

import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip import distributed
from tests.helpers import train_stream, weights
from tests.methods.rows import BATCH, ROWS
from tests.methods.variants import VARIANTS
from tests.methods.worlds import build
from tests.training import languages, moe_runs

ALL = {**ROWS, **VARIANTS}


def rows_that(behaviour):
    """Names of all rows that have a behaviour."""
    return [name for name, row in ROWS.items() if behaviour not in row.cannot]


def sgd(groups):
    """An optimiser that shows the size of gradients."""
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


class Losses(SupervisedPlugin, supports_distributed=True):
    """Notes the samples of each step and the terms of its loss."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.seen, self.ids = [], []

    def after_update(self, strategy, **kwargs):
        terms = {k: float(v) for k, v in strategy.loss_terms.items()}
        self.seen.append({**terms, "all": float(strategy.loss)})
        ids = distributed.gather_rows(strategy.mb_x["sample_id"])
        self.ids.append(sorted(ids.tolist()))


@cache
def batch_run(name, processes=1, compiled=False, checkpointed=None, **options):
    """Train two experiences without randomness; return what came of it."""
    losses = Losses()
    if checkpointed is not None or "sharding" in options:
        with_words = ALL[name].world == "languages"
        model = languages.tiny_model() if with_words else moe_runs.vit()
        model.set_grad_checkpointing(bool(checkpointed))
        options["model"] = model
    options = {"param_groups": None, "optimizer": sgd, **options}
    strategy, benchmark = build(
        ALL[name], losses, noise=0.0, train_mb_size=BATCH // processes, **options
    )
    if compiled:  # traced as for any backend, and run without waiting for code
        strategy.model.compile(backend="eager")
    no_gate_noise = mock.patch(
        "torch.randn", lambda *size, generator=None, **kind: torch.zeros(*size, **kind)
    )
    with no_gate_noise:  # it differs between a batch and its halves
        train_stream(strategy, benchmark, 2)
    return {
        "weights": weights(strategy.model),
        "losses": losses.seen,
        "ids": losses.ids,
        "metrics": strategy.eval(benchmark.test_stream),
        "samples": strategy.compute.report()["samples"],
    }
