"""Training with LoRA, adapters and prompts in an ordinary strategy."""

import copy

import pytest
import torch

from avalanche_clip.checkpointing import load_state, save_state
from avalanche_clip.models import (
    attach_adapters,
    attach_lora,
    attach_prompts,
    merge_adapters,
)
from avalanche_clip.training import Sequential
from tests.helpers import assert_same_weights
from tests.training import moe_runs

ATTACH = {"lora": attach_lora, "adapters": attach_adapters, "prompts": attach_prompts}


def build(name):
    model = moe_runs.vit()
    branches = ATTACH[name](model)
    branches.add()
    branches.train_ids([0, 1])
    branches.set_ids(1)
    options = moe_runs.options(seed=3, schedule="constant", warmup_iterations=0)
    return Sequential(model=model, **options), moe_runs.pairs(model, noise=0.1)


@pytest.mark.parametrize("name", ATTACH)
def test_run__moves_the_ids_in_use_and_is_resumed_exactly(name, tmp_path):
    strategy, benchmark = build(name)
    before = copy.deepcopy(strategy.model.state_dict())
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    path = save_state(strategy, tmp_path / "state.pt")
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    moved = {
        key
        for key, value in strategy.model.state_dict().items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, before[key])
    }
    assert moved and all(".entries.1." in key for key in moved)
    again, benchmark = build(name)
    assert load_state(again, path, benchmark) == 1
    again.train(benchmark.train_stream[1], eval_streams=[])
    assert_same_weights(again.model, strategy.model)
    if name == "lora":
        expected = again.eval(benchmark.test_stream)
        merge_adapters(again.model)
        found = again.eval(benchmark.test_stream)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                assert found[key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.parametrize("name", ATTACH)
def test_resume__brings_ids_that_came_later(name, tmp_path):
    """The model that resumes has the first id only."""
    found = []
    for resumed in (False, True):
        model = moe_runs.vit()
        branches = ATTACH[name](model)
        options = moe_runs.options(seed=3, schedule="constant", warmup_iterations=0)
        strategy = Sequential(model=model, **options)
        benchmark = moe_runs.pairs(model, noise=0.1)
        if resumed:
            assert load_state(strategy, tmp_path / "state.pt", benchmark) == 1
        else:
            strategy.train(benchmark.train_stream[0], eval_streams=[])
            key = branches.add()
            branches.train_ids([key])
            branches.set_ids(key)
            save_state(strategy, tmp_path / "state.pt")
        strategy.train(benchmark.train_stream[1], eval_streams=[])
        assert branches.ids == {"image": 1, "text": 1}
        found.append(model)
    assert_same_weights(*found)
