"""Every method in two processes that share out the weights, against DDP."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import plugins as p
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints, newest_state
from avalanche_clip.training.runs.resume import load_state, read_state
from tests.helpers import assert_same_weights, stub_model, weights
from tests.methods.rows import IN_STEPS, ROWS
from tests.methods.runs import batch_run, rows_that, sgd
from tests.methods.worlds import build
from tests.processes import run_in_processes
from tests.refused import refused
from tests.training import moe_runs

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = rows_that("sharded")
SIGLIP = {
    **moe_runs.CONFIG,
    "model_cfg": {**moe_runs.CONFIG["model_cfg"], "init_logit_bias": -5.0},
}


def biased():
    """A model with a logit bias."""
    torch.manual_seed(0)
    model = create_dual_encoder(SIGLIP)
    model.tokenizer, model.pretrained = moe_runs.StubTokenizer(), "random"
    return model


def student_texts():
    """Distillation on reference data, whose texts the student encodes too."""
    return p.ReferenceDistillationPlugin(
        moe_runs.reference(),
        ["ab", "cde", "f", "ghij"],
        batch_size=4,
        text_side="student",
        teach_first_experience=True,
    )


def special(sharding, *plugins, **options):
    """Plain training of a model with a bias, in some special way."""
    strategy, benchmark = build(
        ROWS["Sequential"],
        *(make() for make in plugins),
        model=biased(),
        noise=0.0,
        train_mb_size=6,
        sharding=sharding,
        clip_grad_norm=0.1,
        param_groups=None,
        optimizer=sgd,
        **options,
    )
    strategy.train(benchmark.train_stream[:2])
    return weights(strategy.model)


SPECIAL = {
    "a logit bias": {},
    "reference data": {},
    "parts of a batch": {"accumulation_steps": 3},
    "in bfloat16": {"precision": "bf16"},
    "evaluated in training": {"eval_every": 1, "peval_mode": "iteration"},
}


def long_run(folder, sharding="fsdp2", batch=4):
    """A run with checkpoints inside experiences, whose moments are kept.

    :param batch: pairs per process, of two.
    """
    return build(
        ROWS["CumulativeExp"],
        p.CheckpointPlugin(folder, every_iterations=2, keep=9),
        model=moe_runs.vit(),
        train_mb_size=batch,
        sharding=sharding,
        reset_optimizer_state=False,
        clip_grad_norm=0.5,
        budget_iterations=5,
    )


def moments(strategy):
    """Moments by name, whole."""
    return {
        f"{name} {key}": v.full_tensor() if hasattr(v, "full_tensor") else v
        for name, state in strategy.optimizer_state()["state"].items()
        for key, v in state.items()
    }


def resumed(folder):
    """Ends of a run, and of those that go on from each of its checkpoints."""
    strategy, benchmark = long_run(folder)
    ids = {name: id(p) for name, p in strategy.model.named_parameters()}
    strategy.train(benchmark.train_stream[:2])
    assert ids == {name: id(p) for name, p in strategy.model.named_parameters()}
    ends = {"": (weights(strategy.model), moments(strategy))}
    for path in checkpoints(folder):
        other, benchmark = long_run(f"{folder}-{path.stem}")
        at = load_state(other, path, benchmark)
        for experience in benchmark.train_stream[at:2]:
            other.train(experience)
        ends[path.name] = weights(other.model), moments(other)
    return ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def pool(folder):
    jobs = {
        f"{name} {kind}": partial(batch_run, name, 2, sharding=kind)
        for name in NAMES
        for kind in ("ddp", "fsdp2")
    }
    for name, options in SPECIAL.items():
        for kind in ("ddp", "fsdp2"):
            plugins = [student_texts] if name == "reference data" else []
            jobs[f"{name} {kind}"] = partial(special, kind, *plugins, **options)
    jobs["resumed"] = partial(resumed, str(folder / "run"))
    return run_in_processes(jobs, folder, seconds=1500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_method__that_shares_out_weights_equals_ddp(name, pool):
    expected = pool[f"{name} ddp"][0]
    for found in pool[f"{name} fsdp2"]:
        assert found["ids"] == expected["ids"]
        for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert found["weights"].keys() == expected["weights"].keys()
        for key, value in expected["weights"].items():
            torch.testing.assert_close(
                found["weights"][key], value, rtol=1e-5, atol=1e-6, msg=key
            )
        assert found["metrics"] == pytest.approx(expected["metrics"], nan_ok=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SPECIAL)
def test_training__that_shares_out_weights_equals_ddp(name, pool):
    expected = pool[f"{name} ddp"][0]
    for found in pool[f"{name} fsdp2"]:
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_checkpoint__of_shared_out_moments_resumes_bit_for_bit(pool, folder):
    for ends in pool["resumed"]:
        assert len(ends) == 7
        for found in ends.values():
            for ours, expected in zip(found, ends[""], strict=True):
                assert ours.keys() == expected.keys()
                assert all(torch.equal(ours[k], v) for k, v in expected.items())
    first, *_, last = checkpoints(folder / "run")
    stored = read_state(last)["optimizer"]["state"]
    expected = pool["resumed"][0][""][1]
    assert all(
        torch.equal(stored[k.split()[0]][k.split()[1]], expected[k]) for k in expected
    )
    # in one process, with the batch of both
    strategy, benchmark = long_run(folder / "alone", "ddp", batch=8)
    assert load_state(strategy, last, benchmark) == 2
    assert_same_weights(strategy.model, pool["resumed"][0][""][0])
    part = max(Path(folder / "run").glob(f"{last.stem}.*.shards/*"))
    with open(part, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CheckpointError, match="not as it was written"):
        read_state(last)
    path, _ = newest_state(folder / "run")
    assert path != last


@pytest.mark.parametrize("name", IN_STEPS)
def test_sharding__of_what_reads_weights_in_steps_is_refused(name):
    model = None if ROWS[name].world == "languages" else moe_runs.vit()
    words = "reads the weights in each step.*use sharding='ddp'"
    refused(words, build, ROWS[name], model=model, sharding="fsdp2")


def test_sharding__is_refused_where_it_cannot_work():
    fsdp2 = partial(build, ROWS["Sequential"], sharding="fsdp2")
    refused("of a StubDualEncoder", fsdp2, model=stub_model())
    refused("no gradient scaler", fsdp2, model=moe_runs.vit(), precision="fp16")
    refused("fsdp2", build, ROWS["Sequential"], sharding="fsdp")
    compiled = moe_runs.vit()
    compiled.compile(backend="eager")
    refused("compiled", fsdp2, model=compiled)
    with pytest.warns(UserWarning, match="no effect in a single process"):
        strategy, benchmark = fsdp2(model=moe_runs.vit())
    with pytest.raises(ValueError, match="'ema' teacher"):
        strategy.teachers.get("ema")
