"""Expert adapters in two gloo processes against one process."""

from functools import partial
from unittest import mock

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import MoEAdaptersPlugin
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import assert_same_weights, weights
from tests.processes import run_in_processes
from tests.training import moe_runs

pytestmark = pytest.mark.slow

ADAPTERS = {"num_experts": 4, "top_k": 2, "bottleneck": 4, "dropout": 0.0}
CASES = {
    "domains": {},
    "selector": {"selector": True},
    "accumulation": {"accumulation_steps": 2},
    "balance": {"balance_weight": 1.0},
    "pairs": {"pairs": True},
    "uneven": {"pairs": True, "per_step": 5},  # fewer than a batch of both processes
}


class Counts(SupervisedPlugin, supports_distributed=True):
    """Note the counters at the end of each experience, before they are cleared."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.found = []

    def after_training_epoch(self, strategy, **kwargs):
        moe = strategy.model.moe_adapters
        self.found.append([a.counts.tolist() for a in moe.adapters("image")])


def spread_gates(model):
    """Give router 0 gates that send rows to different experts, without noise."""
    for number, adapter in enumerate(model.moe_adapters.adapters()):
        generator = torch.Generator().manual_seed(number)
        gate = adapter.routers[0].gate
        with torch.no_grad():
            gate.copy_(torch.randn(gate.shape, generator=generator))


def small_run(case, batch):
    options = dict(CASES[case])
    on_pairs = options.pop("pairs", False)
    sizes = {k: options.pop(k) for k in ("per_step",) if k in options}
    chunks = options.pop("accumulation_steps", 1)
    if options.pop("selector", False):
        options["selector"] = moe_runs.selector()
        options["reference_images"] = moe_runs.reference()
    model = moe_runs.vit()
    counts = Counts()
    plugin = MoEAdaptersPlugin(ADAPTERS, **options)
    strategy = (Sequential if on_pairs else ClassNameTemplate)(
        model=model,
        plugins=[counts, plugin],
        **moe_runs.options(
            train_mb_size=batch,
            budget_iterations=3,
            accumulation_steps=chunks,
            schedule="constant",
            warmup_iterations=0,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05),
        ),
    )
    spread_gates(model)
    stream = moe_runs.pairs if on_pairs else moe_runs.domains
    benchmark = stream(model, 2, **sizes)
    no_noise = mock.patch(
        "torch.randn", lambda *size, generator=None, **kind: torch.zeros(*size, **kind)
    )
    with no_noise:  # the noise of the gates differs between a batch and its halves
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
    strategy.eval(benchmark.test_stream)
    return {
        "weights": weights(model),
        "counts": counts.found,
        "frozen": [a.frozen.tolist() for a in model.moe_adapters.adapters()],
        "routing": plugin.routing,
        "spent": strategy.compute.report()["samples"],
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all cases in one go."""
    jobs = {case: partial(small_run, case, 3) for case in CASES}
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"), seconds=280)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    first, second = pool[case]
    whole = small_run(case, 6)
    assert_same_weights(first["weights"], second["weights"])
    assert first["routing"] == second["routing"]
    if case == "balance":  # the mean of the losses of both halves
        return
    assert first["counts"] == second["counts"] == whole["counts"]
    assert len({tuple(row) for rows in whole["counts"] for row in rows}) > 1
    for key in ("frozen", "spent", "routing"):
        assert first[key] == whole[key], key
    for name, value in whole["weights"].items():
        if not name.endswith("counts"):
            torch.testing.assert_close(
                first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
            )
