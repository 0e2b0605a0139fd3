"""Two gloo processes with half batches against one with the whole batch."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist

from avalanche_clip import distributed
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.supervised import Sequential
from avalanche_clip.training.templates import MethodPlugin
from tests.benchmarks.items.test_marks import metric_values, noise, prepared
from tests.helpers import (
    WORDS,
    StubDualEncoder,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import free_port, run_in_processes
from tests.training import moe_runs
from tests.training import small_runs as runs
from tests.training.growing import GrowingEncoder
from tests.training.small_suites import Weights

# What no row of tests/methods has: a logit bias, a growing module, a frozen tower.
CASES = ("bias", "growing", "frozen", "parts")


def small_run(case, batch):
    """Three iterations in each of two experiences, and what they left."""
    cls = GrowingEncoder if case == "growing" else StubDualEncoder
    model = cls(bias=case in ("bias", "parts"))
    if case == "frozen":
        model.image_proj.requires_grad_(False)
    benchmark = stub_benchmark((16, 16), model=model, targets=True, groups=5)
    strategy = Sequential(
        model=model,
        train_mb_size=batch,
        budget_iterations=3,
        accumulation_steps=2 if case == "parts" else 1,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9),
        evaluator=runs.evaluator(),
    )
    train_stream(strategy, benchmark)
    found = strategy.eval(benchmark.test_stream)
    return {
        "weights": weights(model),
        "metrics": {k: v for k, v in found.items() if "R@" in k and v == v},
        "samples": strategy.compute.report()["samples"],
    }


class Inside(MethodPlugin, supports_distributed=True):
    """Notes the share of the weights that this process holds in each step."""

    stateless = True
    share = 0.0

    def after_update(self, strategy, **kwargs):
        held = [getattr(p, "_local_tensor", p) for p in strategy.model.parameters()]
        shapes = sum(p.numel() for p in strategy.model.parameters())
        self.share = sum(p.numel() for p in held) / shapes


def sharded_run(batch, sharding="ddp"):
    """Two steps in each of two experiences of a model with residual blocks."""
    model, inside = moe_runs.vit(), Inside()
    strategy = Sequential(
        model=model,
        train_mb_size=batch,
        budget_iterations=2,
        clip_grad_norm=0.1,
        plugins=[inside],
        evaluator=quiet_evaluator(),
        sharding=sharding,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9),
    )
    before = {name: id(p) for name, p in model.named_parameters()}
    strategy.train(moe_runs.pairs(model, per_step=8).train_stream[:2])
    same = before == {name: id(p) for name, p in model.named_parameters()}
    return {"weights": weights(model), "share": inside.share, "same": same}


def averaged_gradients(model, loss):
    """Those of a loss, as DDP leaves them."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    for gradient in gradients.values():
        if distributed.is_distributed():
            dist.all_reduce(gradient)
            gradient /= distributed.world_size()
    return gradients


def gather_case():
    """Loss and gradients of features that two processes hold in halves."""
    model = stub_model()
    (experience,) = stub_benchmark((8,), model=model).train_stream
    strategy = Sequential(model=model, train_mb_size=8, evaluator=quiet_evaluator())
    rows = [experience.dataset[k] for k in range(8)]
    count = 8 // distributed.world_size()
    part = rows[distributed.rank() * count :][:count]
    batch = experience.dataset.collate_fn(part)[0]
    output = distributed.gather_output(model(batch))
    loss = strategy._criterion(output)
    gradients = averaged_gradients(model, loss)
    own = distributed.own_rows([count] * distributed.world_size())
    share = strategy._criterion(output, None, own)
    shares = distributed.sum_of_shares(share)
    # Strides of a transposed tensor must not matter.
    turned = torch.arange(6).view(2, 3).T + 10 * distributed.rank()
    return {
        "loss": loss.detach(),
        "gradients": gradients,
        "shares": shares.detach(),
        "gradients_of_shares": averaged_gradients(model, shares),
        "share": share.detach(),
        "scalars": output.logit_scale.dim(),
        "turned": distributed.gather_rows(turned),
        "norms": output.aux["image_norm"].detach(),
        "told": distributed.broadcast_object(f"rank {distributed.rank()}"),
        "ranks": (distributed.rank(), distributed.is_main_process()),
        "device": distributed.init_distributed().type,
    }


def stream_case(folder):
    """A run of two processes that stops, and goes on."""
    written = []
    model, run = {"dropout": 0.0}, {"suites": [Weights()]}
    try:
        runs.go(folder, "CumulativeExp", {"train": 8}, model=model, run=run)
    except runs.Interrupted:
        written = [p.name for p in checkpoints(f"{folder}/checkpoints")]
    strategy, result = runs.go(
        folder, "CumulativeExp", resume=True, model=model, run=run
    )
    whole, expected = runs.go(f"{folder}-whole", "CumulativeExp", model=model, run=run)
    return {
        "suites": str(result.results["suites"]),
        "suites_whole": str(expected.results["suites"]),
        "written": written,
        "weights": weights(strategy.model),
        "whole": weights(whole.model),
        "E": torch.from_numpy(result.E),
        "E_whole": torch.from_numpy(expected.E),
    }


def start_case(folder):
    """A run that starts from the first step of another one."""
    size = 8 // distributed.world_size()
    small = {"train_mb_size": size, "model": {"dropout": 0.0, "noise": 0.0}}
    runs.go(f"{folder}/source", run={"keep_steps": "all"}, **small)
    given = {"start_from": (f"{folder}/source", 0)}
    strategy, result = runs.go(f"{folder}/next", "CumulativeExp", run=given, **small)
    return {"weights": weights(strategy.model), "E": torch.from_numpy(result.E)}


def retrieval_case():
    """Repeated pictures, and captions that differ after the cut only."""
    model = stub_model()
    pairs = [(noise(n % 4), f"abcd{WORDS[n % 6]}") for n in range(12)]
    return metric_values(model, prepared(pairs, model)[1])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all jobs of this file in one go."""
    folder = tmp_path_factory.mktemp("pool")
    jobs = {
        "gather": gather_case,
        "retrieval": retrieval_case,
        **{name: partial(small_run, name, 4) for name in CASES},
        "sharded": partial(sharded_run, 4, "fsdp2"),
        "stream": partial(stream_case, f"{folder}/run"),
        "start": partial(start_case, f"{folder}/start"),
    }
    return run_in_processes(jobs, folder)


def test_gather__loss_and_gradients_are_those_of_the_whole_batch(pool):
    whole = gather_case()
    for number, part in enumerate(pool["gather"]):
        torch.testing.assert_close(part["loss"], whole["loss"])
        torch.testing.assert_close(part["gradients"], whole["gradients"])
        torch.testing.assert_close(part["shares"], whole["loss"])
        assert torch.equal(part["shares"], pool["gather"][0]["shares"])
        torch.testing.assert_close(part["gradients_of_shares"], whole["gradients"])
        torch.testing.assert_close(part["norms"], whole["norms"])
        assert part["device"] in ("cpu", "cuda")
        assert part["scalars"] == 0 and part["told"] == "rank 0"
        assert part["ranks"] == (number, number == 0)
        assert part["turned"].tolist() == [
            *[[0, 3], [1, 4], [2, 5]],
            *[[10, 13], [11, 14], [12, 15]],
        ]
    assert whole["told"] == "rank 0" and whole["ranks"] == (0, True)
    own = [part["share"] for part in pool["gather"]]
    assert own[0] != own[1]
    torch.testing.assert_close(own[0] + own[1], whole["loss"])


def test_retrieval__of_each_process_is_that_of_one(pool):
    first, second = pool["retrieval"]
    assert first == second == pytest.approx(retrieval_case())
    # four pictures, each with three of six captions that the model sees as one
    assert first["text_to_image_mean_rank"] < 4
    assert first["image_to_text_R@1"] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    first, second = pool[case]
    whole = small_run(case, 8)
    for name, value in whole["weights"].items():
        # Ranks must not drift apart at all.
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )
    assert first["metrics"] == second["metrics"]
    assert first["samples"] == second["samples"] == whole["samples"]
    if case == "frozen":
        start = stub_model().image_proj.weight
        assert torch.equal(first["weights"]["image_proj.weight"], start)
    if case == "growing":
        assert first["weights"]["table.rows"].shape == (3, 8)
        assert (first["weights"]["table.rows"] != 0).any(dim=1).all()


@pytest.mark.filterwarnings("ignore")
def test_fsdp2__processes_hold_parts_and_equal_one_with_the_whole_batch(pool):
    whole = sharded_run(8)
    for part in pool["sharded"]:
        assert 0.45 < part["share"] < 0.55 and part["same"]
        for name, value in whole["weights"].items():
            found = part["weights"][name]
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5, msg=name)
            assert torch.equal(found, pool["sharded"][0]["weights"][name]), name


def test_run_stream__two_processes_write_once_and_resume(pool):
    first, second = pool["stream"]
    assert first["written"] == ["state_000000005_eval.pt", "state_000000007.pt"]
    for part in (first, second):
        assert torch.equal(part["E"], part["E_whole"])
        assert part["suites"] == part["suites_whole"] == first["suites"]
        for name, value in part["whole"].items():
            assert torch.equal(value, part["weights"][name]), name
            assert torch.equal(value, first["whole"][name]), name


def test_start_from__two_processes_equal_one(pool, tmp_path):
    whole = start_case(str(tmp_path))
    for part in pool["start"]:
        torch.testing.assert_close(part["weights"], whole["weights"])
        torch.testing.assert_close(part["E"], whole["E"])


def test_one_process__helpers_do_nothing():
    rows = torch.rand(3, 2, requires_grad=True)
    assert distributed.gather_rows(rows) is rows
    output = CLIPOutput(rows, rows, torch.ones(()), None)
    assert distributed.gather_output(output) is output
    assert distributed.broadcast_object([1]) == [1]
    assert distributed.world_size() == 1 and distributed.rank() == 0
    distributed.barrier()
    assert not distributed.is_distributed() and distributed.is_main_process()


@pytest.mark.slow
def test_init_distributed__avalanche_can_be_imported_afterwards():
    code = (
        "from avalanche_clip import distributed; distributed.init_distributed();"
        "from avalanche_clip.training import Sequential; print(distributed.rank())"
    )
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [process.communicate(timeout=200)[0].strip() for process in processes]
    assert found == ["0", "1"]
