"""Expert adapters in two gloo processes."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from avalanche_clip.distributed import SyncedModel
from avalanche_clip.models import attach_moe_adapters, create_dual_encoder
from tests.models.experts import make_batch
from tests.processes import run_in_processes

pytestmark = pytest.mark.slow

OPTIONS = {"num_experts": 9, "top_k": 2, "bottleneck": 4}


def small_run(cfg):
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = create_dual_encoder(cfg).train()
    moe = attach_moe_adapters(model, **OPTIONS)
    moe.start_task()
    parallel = torch.nn.parallel.DistributedDataParallel(
        SyncedModel(model), find_unused_parameters=True
    )
    optimizer = torch.optim.AdamW([p for _, p in moe.trainable_parameters()], lr=0.01)
    torch.manual_seed(rank)
    for step in range(3):
        optimizer.zero_grad()
        out = parallel(make_batch(model, seed=2 * step + rank))
        (out.image_features @ out.text_features.T).square().sum().backward()
        optimizer.step()
    return {
        "counts": [a.counts.tolist() for a in moe.adapters()],
        "frozen": moe.finish_task(),
        "unused": [
            [e.up.weight.grad is None for e in a.experts] for a in moe.adapters()
        ],
        "weights": [float(p.double().sum()) for p in model.parameters()],
    }


def test_processes__freeze_by_the_counts_of_all(tmp_path, tiny_cfg):
    jobs = {"run": partial(small_run, tiny_cfg)}
    one, two = run_in_processes(jobs, tmp_path)["run"]
    assert one["counts"] != two["counts"]
    assert one["frozen"] == two["frozen"]
    assert one["weights"] == two["weights"]
    found = [experts for blocks in one["frozen"].values() for experts in blocks]
    for own, other, frozen in zip(one["counts"], two["counts"], found, strict=True):
        total = [a + b for a, b in zip(own, other, strict=True)]
        assert sum(own) == 3 * 3 * 2
        assert frozen == sorted(range(9), key=lambda e: -total[e])[:2]
