"""The emoji study: stock plugins go in unchanged, and its command line."""

from dataclasses import replace
from types import SimpleNamespace

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
from avalanche_clip.evaluation.functional import continual_summary, time_transfer
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


def test_run__stock_plugins_are_added_unchanged(small, tmp_path, with_report):
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


def test_run__from_pretrained_weights(small, tmp_path):
    config = _config(small, pretrained="emoji-2010", lr=0.0)
    result = small.run(config, "oracle", tmp_path / "run")
    # Nothing is learnt, so each step begins, and ends, with the weights of the start.
    assert np.array_equal(result.E, np.tile(result.before, (2, 1)))
    assert result.results["config"]["pretrained"] == "emoji-2010"
    with pytest.raises(ValueError, match="holds another run"):
        small.run(_config(small, lr=0.0), "oracle", tmp_path / "run")
    small.require_one_start(tmp_path, "emoji-2010")  # no seed_* folder
    (tmp_path / "oracle").mkdir()
    (tmp_path / "run").rename(tmp_path / "oracle" / "seed_0")
    small.require_one_start(tmp_path, "emoji-2010")
    with pytest.raises(ValueError, match="from emoji-2010, these runs would from rand"):
        small.require_one_start(tmp_path, None)


def test_settings__of_a_pretrained_start_are_those_that_were_chosen(study, monkeypatch):
    kept = {"lr": 5e-5, "alpha": 7.0}
    asked = []
    monkeypatch.setattr(study, "chosen", lambda *names: asked.append(names) or kept)
    base = study.Config(pretrained="icons")
    found = study.settings_of(base, "demo", "mod-x")
    assert found == replace(base, **kept) and asked == [("tic_emoji_demo", "mod-x")]
    study.settings_of(base, "full", "oracle")  # which differs in compute only
    assert asked[-1] == ("tic_emoji_full", "cumulative-all")
    # A rate of one's own leaves the rest as it was chosen.
    found = study.settings_of(base, "demo", "mod-x:1e-3")
    assert found == replace(base, lr=1e-3, alpha=7.0)
    # One training with the updates of all six steps.
    found = study.settings_of(base, "demo", "joint")
    assert found == replace(base, **kept, iterations=6 * base.iterations)
    assert asked[-1] == ("tic_emoji_demo", "cumulative-all")
    other = replace(base, pretrained="emoji-2010")
    study.settings_of(other, "demo", "lwf")
    assert asked[-1] == ("tic_emoji_demo_emoji-2010", "lwf")
    assert study.settings_of(study.Config(), "full", "lwf") == study.Config()
    assert study.settings_of(study.Config(), "full", "joint") == study.JOINT


def test_search__tries_each_candidate_on_validation_drawings(
    small, monkeypatch, tmp_path
):
    scores = {}

    def search(study, grid, score, facts):
        candidate = grid["mod-x"][0]
        scores[study] = score("mod-x", candidate)
        assert facts["pretrained"] == "emoji-2010" and len(grid["mod-x"]) > 1

    monkeypatch.setattr(small, "DEMO_CONFIG", _config(small))
    monkeypatch.setattr(small, "search", search)
    monkeypatch.setattr(small, "search_table", lambda study: study)
    words = "--preset demo --pretrained emoji-2010 --search --methods mod-x --out"
    small.main([*words.split(), str(tmp_path)])
    (run,) = tmp_path.glob("mod-x_*")
    assert (run / "results.json").is_file()
    assert 0 <= scores["tic_emoji_demo_emoji-2010"] <= 1


def test_joint__of_a_pretrained_start_is_one_training_on_the_stream(small, tmp_path):
    config = _config(small, pretrained="emoji-2010")
    result = small.run(config, "joint", tmp_path)
    assert result.E.shape == (1, 2) and result.compute["steps"] == [4]
    text = small.table({"joint:1e-3": [result]})
    levels, ends = (r.split() for r in text.splitlines() if r.startswith("joint"))
    assert levels[1] == "-"  # its cost is in no step's budget
    last = 100 * result.E[0]
    assert ends[1:] == [f"{value:.1f}" for value in last]


def test_joint__published_training_keeps_its_order_of_samples(study, monkeypatch):
    built = []
    monkeypatch.setattr(
        "avalanche_clip.benchmarks.prepare_benchmark",
        lambda scenario, *args, **options: built.append(len(scenario.train_stream)),
    )
    model = create_dual_encoder("tiny-emoji")
    study.build_benchmark(study.JOINT, "joint", model)
    study.build_benchmark(study.Config(pretrained="icons"), "joint", model)
    assert built == [1, 6]


@pytest.mark.parametrize("gallery", [True, False])
def test_table__shows_what_is_left_of_each_step(study, gallery):
    E = np.array([[0.5, 0.1], [0.2, 0.4]])
    result = SimpleNamespace(
        E=E,
        before=np.array([0.3, 0.0]),
        matrices={"test": {}, "gallery": {}} if gallery else {"test": {}},
        matrix=lambda metric, stream: E,
        compute={"total_macs": 4.0, "macs": [{"train": 2.0}]},
        summary={"test": {"mean_R@1": continual_summary(E) | time_transfer(E)}},
        results={
            "data": {"labels": {"test": ["old", "new"]}},
            "seconds": {"train": []},
        },
    )
    text = study.table({"lwf": [result]})
    line = next(line for line in text.splitlines() if line.startswith("lwf"))
    # Cost, in-domain, backward, forward, forgetting, gallery, minutes.
    levels = ["2.0", "45.0", "20.0", "10.0", "30.0", *["20.0"] * gallery, "0.0"]
    assert line.split()[1:] == levels and ("gallery" in text) == gallery
    before, after = (line.split() for line in text.splitlines()[-2:])
    assert before[-2:] == ["30.0", "0.0"] and after == ["lwf", "20.0", "40.0"]
