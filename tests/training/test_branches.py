"""LoRA, adapters and prompts in a resumed run; the rest is in ``tests/methods``."""

import pytest

from avalanche_clip.checkpointing import load_state, save_state
from avalanche_clip.models import (
    attach_adapters,
    attach_lora,
    attach_prompts,
)
from avalanche_clip.training import Sequential
from tests.helpers import assert_same_weights
from tests.training import moe_runs

ATTACH = {"lora": attach_lora, "adapters": attach_adapters, "prompts": attach_prompts}


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
