"""Expert adapters in two gloo processes against one process."""

import os
import socket
import traceback
import warnings
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from avalanche.core import SupervisedPlugin

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import MoEAdaptersPlugin
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import assert_same_weights, weights
from tests.training import moe_runs, runs

pytestmark = pytest.mark.slow

ADAPTERS = {"num_experts": 4, "top_k": 2, "bottleneck": 4, "dropout": 0.0}
CASES = {
    "domains": {},
    "selector": {"selector": True},
    "accumulation": {"accumulation_steps": 2},
    "balance": {"balance_weight": 1.0},
    "pairs": {"pairs": True},
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
    benchmark = stream(model, 2)
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


def work(rank, port, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    found = {}
    for case in CASES:
        try:
            found[case] = small_run(case, 3)
        except Exception:
            found[case] = traceback.format_exc()
            break  # the processes are no longer in step
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all cases in one go."""
    folder = tmp_path_factory.mktemp("pool")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = runs.context()
    processes = [
        context.Process(target=work, args=(rank, port, str(folder))) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(280)
        if process.is_alive():
            process.kill()
    paths = [folder / f"{rank}.pt" for rank in (0, 1)]
    return [torch.load(p, weights_only=False) if p.exists() else {} for p in paths]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    for part in pool:
        assert not isinstance(part.get(case), str), part[case]
        assert case in part, [v for v in part.values() if isinstance(v, str)]
    first, second = (part[case] for part in pool)
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
