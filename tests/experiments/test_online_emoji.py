"""The study of emoji as an online stream."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import si_blurry_benchmark
from avalanche_clip.training.supervised import SIT
from tests.training import moe_runs

STUDY = "online_emoji"


@pytest.fixture
def short(study, monkeypatch):
    """Four classes in two tasks in place of the emoji, and a tiny model."""

    def labelled(*numbers):
        return moe_runs.labelled(*numbers, torch.sigmoid)  # real transforms: [0, 1]

    def scenario(config):
        held = (
            None,
            labelled(6, 3, 2, 5),
            moe_runs.NAMES[6:9],
            "a {}",
            "held",
        )
        return si_blurry_benchmark(
            labelled(0, 4, 8, 1),
            labelled(0, 4, 3, 2),
            moe_runs.NAMES[:4],
            "a {}",
            num_tasks=2,
            stochastic=False,
            seed=config.seed,
            zero_shot=[held],
            valid=labelled(0, 4, 2, 3),
        )

    monkeypatch.setattr(study, "build_model", lambda config: moe_runs.vit())
    monkeypatch.setattr(study, "build_scenario", scenario)
    monkeypatch.setattr(study, "chosen", lambda name, tuning: {"lr": 1e-2})
    return study


def config_of(study, **options):
    return study.Config(**{"train_mb_size": 8, "period": 10, **options})


def test_run__figures_and_no_second_training(short, tmp_path, monkeypatch):
    config = config_of(short)
    found = short.run(config, "sit-lora-both", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    E = np.array(results["matrices"]["test"][short.ACCURACY]["E"], dtype=float)
    counts = np.array(results["data"]["counts"]["test"])
    level = [np.nansum(row * counts) / counts[~np.isnan(row)].sum() for row in E]
    seen = results["evaluations"]["samples"]
    assert seen == [16, 24, 32]
    curve = [level[seen.index(n)] for n in (16, 24, 32)]  # beyond 10, 20 and 30
    ends = [level[seen.index(n)] for n in (16, 32)]
    assert found["A_AUC"] == pytest.approx(100 * np.mean(curve))
    assert found["A_Avg"] == pytest.approx(100 * np.mean(ends))
    assert found["A_Last"] == pytest.approx(100 * level[-1])
    held = results["matrices"]["zero_shot"][short.ACCURACY]["E"]
    assert found["zero-shot"] == found["held"] == pytest.approx(100 * held[-1][0])
    assert found["thousands"] > 0
    monkeypatch.setattr(SIT, "forward", None)  # nothing is trained or tested again
    again = short.run(config, "sit-lora-both", tmp_path)
    assert again == pytest.approx(found, nan_ok=True)


def test_run__training_free_and_validation(short, tmp_path):
    still = short.run(config_of(short), short.STILL, tmp_path / "a")
    assert still["thousands"] == 0 and {*short.ONLINE, "held"} <= set(still)
    tried = short.run(
        config_of(short, validation=True), "ait-adapters-text", tmp_path / "b"
    )
    results = json.loads((tmp_path / "b/results.json").read_text())
    assert list(results["matrices"]) == ["valid"]
    assert "held" not in tried and "A_AUC" in tried


def test_methods__forms_tunings_and_towers(short):
    assert len(short.METHODS) == len(set(short.METHODS)) == 13
    for name in short.METHODS[1:]:
        strategy = short.build_strategy(
            name, 0.5, {"model": moe_runs.vit(), "evaluator": None}, train_mb_size=4
        )
        form, tuning, tower = name.split("-")
        assert (strategy.visible == "batch") == (form == "sit")
        assert (strategy.tuning, strategy.tower) == (tuning, tower)
        (group,) = strategy.optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.5, 1e-5)
        assert (strategy.repeats, strategy.train_mb_size) == (3, 4)


def test_settings__named_or_chosen_by_what_is_trained(short, monkeypatch):
    monkeypatch.setattr(short, "chosen", lambda name, tuning: {"of": (name, tuning)})
    assert short.settings_of(short.STILL) == {}
    assert short.settings_of("sit-lora-text") == {"of": (STUDY, "lora")}
    assert short.settings_of("ait-adapters-both") == {"of": (STUDY, "adapters")}
    assert short.settings_of("ait-lora-both:0.5") == {"lr": 0.5}


def test_gains__by_kind_and_seed(study, tmp_path):
    def rows(*values):
        return [{"A_AUC": value, "thousands": 3.0} for value in values]

    lines = {"sit-lora-both": rows(5, 7), "ait-lora-both": rows(4, 9)}
    lines |= {"sit-lora-text": rows(1, 1), "continual-clip": rows(2, 2)}
    assert study.gains(lines) == {"lora-both": [{"A_AUC": 1}, {"A_AUC": -2}]}
    text = study.write_tables(lines, tmp_path, {})
    assert "-0.5 ±2.1" in text
    kept = json.loads((tmp_path / "gains/figures.json").read_text())["methods"]
    assert kept == {"lora-both": {"A_AUC": [1, -2]}}


def test_search__neither_form_is_favoured(short, monkeypatch, tmp_path):
    scores = {
        **{"sit-lora-both:0.1": 9.0, "ait-lora-both:0.1": 1.0},
        **{"sit-lora-both:0.2": 6.0, "ait-lora-both:0.2": 5.0},
    }
    monkeypatch.setattr(
        short, "run", lambda config, method, out_dir: {"A_AUC": scores[method]}
    )
    for name in ("search", "search_table"):
        changed = partial(getattr(short, name), folder=tmp_path)
        monkeypatch.setattr(short, name, changed)
    monkeypatch.setattr(short, "GRID", {"lora": [{"lr": 0.1}, {"lr": 0.2}]})
    text = short.choose(config_of(short, validation=True), tmp_path / "runs")
    assert text.splitlines()[1].startswith("* lora")
    kept = json.loads((tmp_path / f"{STUDY}.json").read_text())["methods"]["lora"]
    assert [score for _, score in kept["tried"]] == [5.0, 5.5]
    assert kept["facts"]["held_out"] == ["Food & Drink", "Objects"]


def test_scenario__groups_that_are_held_out(study):
    with pytest.warns(UserWarning, match="Si-Blurry"):
        found = study.build_scenario(study.Config(validation=True))
    assert len(found.streams["valid"]) > 0
    labels = [experience.label for experience in found.streams["zero_shot"]]
    assert labels == ["Food & Drink", "Objects", "icons"]


@pytest.mark.slow
def test_main__all_methods_and_resume(short, tmp_path, capsys):
    arguments = ["--period", "10", "--out", str(tmp_path)]
    short.main(arguments)
    first = capsys.readouterr().out
    for method in short.METHODS:
        assert f"\n{method} " in first
    short.main(arguments)
    assert capsys.readouterr().out == first
