"""Expert adapters in two gloo processes."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avalanche_clip.distributed import SyncedModel
from avalanche_clip.models import attach_moe_adapters, create_dual_encoder
from tests.models.experts import make_batch

pytestmark = pytest.mark.slow

OPTIONS = {"num_experts": 9, "top_k": 2, "bottleneck": 4}


def work(rank, folder, cfg):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
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
    facts = {
        "counts": [a.counts.tolist() for a in moe.adapters()],
        "frozen": moe.finish_task(),
        "unused": [
            [e.up.weight.grad is None for e in a.experts] for a in moe.adapters()
        ],
        "weights": [float(p.double().sum()) for p in model.parameters()],
    }
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


def test_processes__freeze_by_the_counts_of_all(tmp_path, tiny_cfg):
    mp.spawn(work, (tmp_path, tiny_cfg), nprocs=2)
    one, two = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert one["counts"] != two["counts"]
    assert one["frozen"] == two["frozen"]
    assert one["weights"] == two["weights"]
    found = [experts for blocks in one["frozen"].values() for experts in blocks]
    for own, other, frozen in zip(one["counts"], two["counts"], found, strict=True):
        total = [a + b for a, b in zip(own, other, strict=True)]
        assert sum(own) == 3 * 3 * 2
        assert frozen == sorted(range(9), key=lambda e: -total[e])[:2]
