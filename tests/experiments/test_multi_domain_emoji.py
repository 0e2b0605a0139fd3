"""The study of emoji domains: methods, tables and command line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training import moe_runs

STUDY = "multi_domain_emoji"


@pytest.fixture
def short(study, monkeypatch):
    """Three domains of a few images in place of the emoji, and a tiny model."""
    # plots of single runs take longer than the runs
    monkeypatch.setattr(
        "avalanche_clip.training.runs.stream.write_report", lambda out: None
    )
    monkeypatch.setattr(study, "build_model", lambda config: moe_runs.vit())
    monkeypatch.setattr(
        study,
        "build_benchmark",
        lambda config, model: study.copy_test_stream(
            moe_runs.domains_with_reference(model), study.VIEWS
        ),
    )
    monkeypatch.setattr(
        study, "build_selector", lambda config: moe_runs.selector(seed=config.seed)
    )
    return study


@pytest.fixture(scope="module")
def emoji(study):
    """The real stream and model."""
    config = study.Config(validation=True)
    model = study.build_model(config)
    return config, model, study.build_benchmark(config, model)


def test_benchmark__nine_domains_and_the_emoji_of_2010(study, emoji):
    _, model, benchmark = emoji
    assert [len(benchmark.streams[name]) for name in ("train", "test")] == [9, 9]
    (known,) = benchmark.streams["reference"]
    assert len(known.class_names) == 719
    sizes = [
        sum(len(e.dataset) for e in benchmark.streams[n]) for n in ("train", "test")
    ]
    assert sizes == [1192, 1192]  # validation: one style each
    real = study.build_benchmark(study.Config(), model)
    assert sum(len(e.dataset) for e in real.train_stream) == 2 * 1192


@pytest.mark.parametrize("name", ["moe-adapters", "moe-no-freeze"])
def test_build_strategy__forms_of_the_adapters(name, study, emoji):
    config, _, benchmark = emoji
    model = study.build_model(config)
    strategy = study.build_strategy(config, name, model, benchmark)
    assert strategy.moe.freeze == (name != "moe-no-freeze")
    selector = strategy.moe.auto_selector
    assert (selector.hidden, selector.training_plan.lr) == (16, 0.003)
    assert selector.extractor_module.settings() == {"pooling": "none"}
    assert strategy.learning_rates == (config.rates[name],)
    (first, *_) = model.moe_adapters.adapters()
    assert first.num_experts == config.num_experts
    assert study.parameter_counts(strategy)["trainable"] == (
        model.moe_adapters.num_trainable
    )


def test_build_strategy__zscl_fine_tuning_and_other_rates(study, emoji):
    config, model, benchmark = emoji
    strategy = study.build_strategy(config, "zscl", model, benchmark)
    distillation = strategy.distillation
    assert len(distillation.texts) == 719 and len(distillation.images) == 719
    plain = study.build_strategy(config, "fine-tuning:0.002", model, benchmark)
    assert plain.learning_rates == (0.002,)
    assert study.parameter_counts(plain)["trainable"] > 1_000_000


def test_views__rule_and_granularity_by_stream(short):
    config = short.Config(iterations=2, warmup=0)
    model = short.build_model(config)
    benchmark = short.build_benchmark(config, model)
    assert {"test", "test_batch", "test_newest", "test_own"} <= set(benchmark.streams)
    strategy = short.build_strategy(config, "moe-adapters", model, benchmark)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    moe = strategy.moe
    for name in short.VIEWS:
        strategy.eval(benchmark.streams[name])
        assert (moe.router_for_eval, moe.auto_selector.granularity) == (
            "auto",
            "sample",
        )
    routed = moe.routing
    for index in range(3):
        size = len(benchmark.streams["test"][index].dataset)
        assert routed["test_own"][f"3,{index}"] == {str(index): size}
        assert routed["test_newest"][f"3,{index}"] == {"2": size}
        assert len(routed["test_batch"][f"3,{index}"]) == 1  # one batch
        assert sum(routed["test"][f"3,{index}"].values()) == size
        errors = moe.auto_selector.errors(
            torch.stack(
                [image for image, *_ in benchmark.streams["test"][index].dataset.eval()]
            )
        )
        best = errors.mean(0).argmin() - 1
        assert list(routed["test_batch"][f"3,{index}"]) == [str(int(best))]


def test_line_and_tables__hand_computed(study, tmp_path):
    matrix = np.array([[0.5, 0.3], [0.4, 0.6]])
    found = {
        "matrix": matrix,
        "base": 0.25,
        "own": None,
        "trainable": 7,
        "labels": ["a", "b"],
        "routing": {"1,0": {"0": 1}, "2,0": {"0": 3, "-1": 1}, "2,1": {"0": 1, "1": 1}},
    }
    line = study.line(found)
    assert line["transfer"] == pytest.approx(30) and line["last"] == pytest.approx(50)
    assert line["average"] == pytest.approx(45) and line["2010"] == 25
    assert np.isnan(line["own router"])
    other = {**found, "matrix": matrix + 0.1, "routing": None, "own": 0.7}
    text = study.write_tables({"one": [found, other], "two": [other, other]}, tmp_path)
    assert "55.0 ±7.1" in text  # last: 50 and 60
    assert text == (tmp_path / "tables.txt").read_text().rstrip("\n")
    rows = [row.split() for row in text.splitlines()]
    one, two = (next(r for r in rows if r[:1] == [n]) for n in ("one", "two"))
    assert one[-2:] == ["-", "7"] and two[-3:] == ["70.0", "±0.0", "7"]
    assert ["a", "75.0", "0.0", "25.0"] in rows and ["b", "50.0", "50.0", "0.0"] in rows
    assert ["one", "transfer", "35.0"] in rows
    assert (tmp_path / "summary.png").is_file() and (tmp_path / "domains.png").is_file()


@pytest.mark.slow
def test_main__all_methods_and_resume(short, tmp_path, capsys):
    arguments = ["--iterations", "2", "--out", str(tmp_path)]
    short.main(arguments)
    first = capsys.readouterr().out
    names = ("moe-adapters per batch", "moe-adapters no-ddas")
    for method in (*short.METHODS, *names):
        assert f"\n{method} " in first
    assert "trainable" in first
    assert (tmp_path / "comparison.html").is_file()
    routing = json.loads((tmp_path / "moe-adapters/seed_0/routing.json").read_text())
    assert set(routing) == {*short.VIEWS, "reference_test"}
    assert sum(routing["test"]["3,0"].values()) == 6
    short.main(arguments)
    assert capsys.readouterr().out == first
    again = json.loads((tmp_path / "moe-adapters/seed_0/routing.json").read_text())
    assert again == routing


def test_once__is_kept_for_the_same_settings_only(study, monkeypatch, tmp_path):
    import domain_study

    calls = []
    monkeypatch.setattr(
        domain_study, "accuracies", lambda *args: calls.append(args) or [0.5]
    )
    benchmark = SimpleNamespace(streams={"test": None})
    for settings in ({"seed": 0}, {"seed": 0}, {"seed": 1}):
        found = domain_study.once(None, benchmark, ["test"], tmp_path, settings)
        assert found == {"test": [0.5]}
    assert len(calls) == 2
