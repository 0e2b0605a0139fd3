"""The emoji study: stock plugins go in unchanged, and its command line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
)

from avalanche_clip.benchmarks import (
    prepare_benchmark,
    split_validation,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
from avalanche_clip.models import create_dual_encoder

STUDY = "tic_emoji"
EMOJI = [*range(0, 20), *range(720, 740)]  # of two time steps


@pytest.fixture
def small(study, monkeypatch):
    def build(config, method, model):
        train = emoji_dataset(["noto", "openmoji"], EMOJI, captions="all")
        test = emoji_dataset(["twemoji"], EMOJI)
        scenario = time_stamped_benchmark(train, num_experiences=2, test=test)
        return prepare_benchmark(split_validation(scenario, 0.2), model)

    monkeypatch.setattr(study, "build_benchmark", build)
    monkeypatch.setattr(study, "STREAMS", ("test",))
    return study


def _config(study, **changes):
    tiny = study.Config(iterations=4, train_mb_size=8, warmup=1)
    return replace(tiny, **changes)


def test_optimizers__hold_every_parameter_once(study):
    model = create_dual_encoder("tiny-emoji")
    names = {id(p): n for n, p in model.named_parameters()}
    for kind in ("adamw", "muon"):
        optimizer = study.build_optimizer(_config(study, optimizer=kind), model)
        groups = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
        assert sorted(sum(groups, [])) == sorted(names.values())
        plain = [g["weight_decay"] == 0 for g in optimizer.param_groups]
        assert plain[-1] and not any(plain[:-1])
        assert any("logit_scale" in name for name in groups[-1])
    shared = ("embedding", "stem", "conv_dw", "norm", "bias", "gamma", "scale")
    assert groups[0] and not any(part in n for n in groups[0] for part in shared)


def test_muon__trains_and_resumes(small, tmp_path):
    config = _config(small, optimizer="muon")
    result = small.run(config, "sequential", tmp_path)
    again = small.run(config, "sequential", tmp_path)
    assert np.isfinite(result.E).all() and np.array_equal(result.E, again.E)


def test_run__stock_plugins_are_added_unchanged(small, tmp_path):
    def plugins(optimizer):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return [
            ReplayPlugin(mem_size=8),
            EWCPlugin(ewc_lambda=0.1, mode="online", decay_factor=0.5),
            LRSchedulerPlugin(scheduler),
            EarlyStoppingPlugin(1, "valid_stream", metric_name="mean_R@1"),
        ]

    config = _config(small, train_epochs=2, eval_every=1)
    with pytest.warns(UserWarning, match="LRSchedulerPlugin sets"):
        result = small.run(config, "sequential", tmp_path / "run", plugins=plugins)
    assert result.E.shape == (2, 2)
    assert (tmp_path / "run" / "report.html").is_file()


def test_run__early_stopping_watches_the_validation_stream(small, tmp_path):
    def plugins(optimizer):
        return [EarlyStoppingPlugin(1, "valid_stream", metric_name="mean_R@1")]

    # Nothing is learnt, so the first part of four is the last one.
    config = _config(small, lr=0.0, train_epochs=4, eval_every=1)
    result = small.run(config, "sequential", tmp_path / "run", plugins=plugins)
    assert result.compute["steps"] == [1, 1]
    full = small.run(config, "sequential", tmp_path / "full")
    assert full.compute["steps"] == [4, 4]


def test_run__bf16_and_resume_of_a_finished_run(small, tmp_path):
    config = _config(small, precision="bf16")
    first = small.run(config, "cumulative-exp", tmp_path / "run")
    again = small.run(config, "cumulative-exp", tmp_path / "run")
    assert np.array_equal(first.E, again.E)
