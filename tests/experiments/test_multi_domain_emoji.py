"""The study of emoji domains: methods, tables and command line."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks.items.scenario import make_scenario
from tests.scripts import load_script
from tests.training import moe_runs

STUDY = "multi_domain_emoji"
EMOJI = {"pretrained": "emoji-2010"}


def shorten(study, monkeypatch):
    """Three domains of a few images in place of the emoji, and a tiny model."""

    def benchmark(config, model):
        found = moe_runs.domains_with_reference(model)
        streams = {**found.streams, "icons": found.streams["reference_test"]}
        return study.copy_test_stream(make_scenario(streams, found), study.VIEWS)

    monkeypatch.setattr(study, "build_model", lambda config: moe_runs.vit())
    monkeypatch.setattr(study, "build_benchmark", benchmark)
    monkeypatch.setattr(
        study, "build_selector", lambda config: moe_runs.selector(seed=config.seed)
    )
    monkeypatch.setattr(study, "chosen", lambda name, method: study.GRID[method][0])
    return study


@pytest.fixture
def short(study, monkeypatch):
    return shorten(study, monkeypatch)


@pytest.fixture(scope="module")
def emoji(study):
    """The real stream and model."""
    config = study.Config(validation=True, **EMOJI)
    model = study.build_model(config)
    return config, model, study.build_benchmark(config, model)


def test_benchmark__nine_domains_the_emoji_of_2010_and_icons(study, emoji):
    _, model, benchmark = emoji
    assert [len(benchmark.streams[name]) for name in ("train", "test")] == [9, 9]
    (known,) = benchmark.streams["reference"]
    assert len(known.class_names) == 719
    sizes = [
        sum(len(e.dataset) for e in benchmark.streams[n]) for n in ("train", "test")
    ]
    assert sizes == [1192, 1192]  # validation: one style each
    real = study.build_benchmark(study.Config(order="II", **EMOJI), model)
    assert sum(len(e.dataset) for e in real.train_stream) == 2 * 1192
    first = [e.label for e in benchmark.train_stream]
    assert [e.label for e in real.train_stream] == [
        first[k] for k in (6, 7, 8, 5, 0, 1, 3, 4, 2)
    ]
    (icons,) = real.streams["icons"]
    assert len(icons.dataset) == len(icons.class_ids) == len(set(icons.class_names))
    assert set(icons.class_ids).isdisjoint(known.class_ids)
    target = int(icons.dataset.targets[5])
    image, name, *_ = icons.dataset[5]
    assert icons.class_prompts.name(target) == icons.class_names[5] == name
    assert image.shape == real.train_stream[0].dataset[0][0].shape


def test_settings__named_or_chosen(study, monkeypatch):
    monkeypatch.setattr(study, "chosen", lambda name, m: {"lr": 0.5, "of": m})
    assert study.settings_of("zero-shot") == {}
    assert study.settings_of("zscl:0.1:3") == {"lr": 0.1, "weight": 3}
    assert study.settings_of("zscl:0.1") == {"lr": 0.1, "of": "zscl"}
    assert study.settings_of("moe-no-freeze") == {"lr": 0.5, "of": "moe-adapters"}
    for wrong in ("zero-shot:1", "lora:1:2", "patching:a"):
        with pytest.raises(ValueError, match="must be"):
            study.settings_of(wrong)
    for method, candidates in study.GRID.items():
        text = ":".join([method, *map(str, candidates[0].values())])
        assert study.settings_of(text) == candidates[0]


@pytest.mark.parametrize("name", ["moe-adapters", "moe-no-freeze"])
def test_build_strategy__forms_of_the_adapters(name, study, emoji):
    config, _, benchmark = emoji
    model = study.build_model(config)
    strategy = study.build_strategy(config, f"{name}:7e-3:20", model, benchmark)
    assert strategy.moe.freeze == (name != "moe-no-freeze")
    selector = strategy.moe.auto_selector
    plan = selector.training_plan
    assert (selector.hidden, plan.lr) == (20, 0.003)
    assert (plan.reference_iterations, plan.task_iterations) == (1000, 300)
    assert selector.extractor_module.settings() == {"pooling": "none"}
    assert strategy.learning_rates == (7e-3,)
    (first, *_) = model.moe_adapters.adapters()
    assert first.num_experts == config.num_experts
    assert study.run_facts(strategy, ())["trainable"] == (
        model.moe_adapters.num_trainable
    )


def test_build_strategy__other_methods(study, emoji):
    config, _, benchmark = emoji

    def build(method):
        model = study.build_model(config)
        return study.build_strategy(config, method, model, benchmark)

    def plugin(strategy, name):
        return next(p for p in strategy.plugins if type(p).__name__ == name)

    zscl = build("zscl:0.001:3")
    assert len(zscl.distillation.texts) == 719 and len(zscl.distillation.images) == 719
    assert zscl.distillation.image_weight == zscl.distillation.text_weight == 3
    assert zscl.learning_rates == (0.001,)
    vr = plugin(build("vr-lwf:0.001:3"), "VocabularyReplayPlugin")
    assert (vr.image_weight, vr.text_weight) == (3, 3)
    patching = plugin(build("patching:0.001:0.3"), "WeightAveragingPlugin")
    assert (patching.mode, patching.alpha) == ("wise", 0.3)
    for name in ("lora", "lora-merged"):
        lora = build(f"{name}:0.003")
        assert lora.lora.merge == (name == "lora-merged")
        rates = {group["lr"] for group in lora.optimizer.param_groups}
        assert rates == {0.003} and lora.label_smoothing == config.label_smoothing
    joint = build("joint:0.001")
    images = joint.compute.iterations * joint.train_mb_size
    assert images == 9 * config.iterations * config.train_mb_size
    plain = build("fine-tuning:0.002")
    assert plain.learning_rates == (0.002,)
    assert study.run_facts(plain, ())["trainable"] > 800_000


def test_views__rule_and_granularity_by_stream(short):
    config = short.Config(iterations=2, warmup=0)
    model = short.build_model(config)
    benchmark = short.build_benchmark(config, model)
    assert {"test", "test_batch", "test_newest", "test_own"} <= set(benchmark.streams)
    strategy = short.build_strategy(config, "moe-adapters:7e-3:16", model, benchmark)
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


def found(matrix, **others):
    row = {"joint": False, "base": 0.25, "icons": 0.5, "own": None, "routing": None}
    row |= {"before": [0.2, 0.3], "chance": [0.19, 0.2], "trainable": 7000}
    return {**row, "matrix": np.array(matrix), "labels": ["a", "b"], **others}


def test_line_and_tables__hand_computed(study, tmp_path):
    routing = {"1,0": {"0": 1}, "2,0": {"0": 3, "-1": 1}, "2,1": {"0": 1, "1": 1}}
    one = found([[0.5, 0.3], [0.4, 0.6]], routing=routing)
    other = found(one["matrix"] + 0.1, own=0.7)
    line = study.line(one)
    expected = {"transfer": 30, "average": 45, "last": 50, "learned": 55, "known": 30}
    expected |= {"icons": 50, "2010": 25, "thousands": 7}
    assert {k: line[k] for k in expected} == pytest.approx(expected)
    assert np.isnan(line["own router"])
    assert np.isnan(study.line({**one, "before": [0.9, 0.24]})["known"])
    joint = study.line({**one, "joint": True})
    assert joint["last"] == pytest.approx(50) and np.isnan(joint["transfer"])
    runs = {
        "one": [one, other],
        "two": [other] * 2,
        "joint": [{**one, "joint": True}] * 2,
    }
    text = study.write_tables(runs, tmp_path, {"order": "I"})
    assert "55.0 ±7.1" in text  # last: 50 and 60
    assert text == (tmp_path / "tables.txt").read_text().rstrip("\n")
    rows = [row.split() for row in text.splitlines()]
    two = next(r for r in rows if r[:1] == ["two"])
    assert two[-4:] == ["70.0", "±0.0", "7.0", "±0.0"]
    assert ["a", "75.0", "0.0", "25.0"] in rows and ["b", "50.0", "50.0", "0.0"] in rows
    assert ["one", "transfer", "35.0"] in rows
    assert (tmp_path / "summary.png").is_file() and (tmp_path / "domains.png").is_file()
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["methods"]["one"]["last"] == pytest.approx([50, 60])
    assert kept["facts"]["domains"]["a"] == pytest.approx(
        {"zero_shot": 20, "chance": 19, "known": False}
    )
    assert kept["facts"]["domains"]["b"]["known"]


def test_gains__against_fine_tuning_that_learns_as_much(study):
    def point(learned, transfer, icons=0.0):
        return [{"learned": learned, "transfer": transfer, "icons": icons}]

    figures = load_script("experiments/domain_figures.py")
    lines = {"zero-shot": point(10, 20, 5), "fine-tuning:1": point(20, 10)}
    assert figures.with_gains(lines) == lines
    lines |= {
        "fine-tuning:2": point(30, 9, 1),
        "zscl": point(15, 18),
        "x": point(31, 9),
    }
    gains = figures.with_gains(lines)
    assert gains["zscl"][0]["transfer+"] == pytest.approx(3)
    assert gains["zscl"][0]["icons+"] == pytest.approx(-4)
    for name in ("zero-shot", "fine-tuning:2", "x"):
        assert np.isnan(gains[name][0]["transfer+"])


@pytest.mark.slow
def test_main__all_methods_and_resume(short, tmp_path, capsys):
    # random sentences of VR-LwF do not fit into the texts of so small a model
    methods = [method for method in short.METHODS if method != "vr-lwf"]
    arguments = ["--iterations", "2", "--out", str(tmp_path)]
    arguments += ["--methods", ",".join(methods)]
    short.main(arguments)
    first = capsys.readouterr().out
    names = ("moe-adapters per batch", "moe-adapters no-ddas")
    for method in (*methods, *names):
        assert f"\n{method} " in first
    assert (tmp_path / "comparison.html").is_file()
    routing = json.loads((tmp_path / "moe-adapters/seed_0/routing.json").read_text())
    assert set(routing) == {*short.VIEWS, "reference_test", "icons"}
    assert sum(routing["test"]["3,0"].values()) == 6
    short.main(arguments)
    assert capsys.readouterr().out == first
    again = json.loads((tmp_path / "moe-adapters/seed_0/routing.json").read_text())
    assert again == routing


def test_search__best_average_on_validation_drawings(short, monkeypatch, tmp_path):
    import domain_study

    found = partial(domain_study.search, folder=tmp_path)
    monkeypatch.setattr(domain_study, "search", found)
    monkeypatch.setattr(
        short, "search_table", partial(short.search_table, folder=tmp_path)
    )
    candidates = [{"lr": 1e-5, "alpha": 0.3}, {"lr": 1e-2, "alpha": 0.7}]
    monkeypatch.setattr(short, "GRID", {"patching": candidates})
    config = short.Config(iterations=2, warmup=0, validation=True)
    text = short.choose(config, ("zero-shot", "patching"), tmp_path / "runs")
    assert len(text.splitlines()) == 2
    figures = json.loads((tmp_path / "runs/figures.json").read_text())["methods"]
    scores = [figures[f"patching:{c}"]["average"][0] for c in ("1e-05:0.3", "0.01:0.7")]
    kept = json.loads((tmp_path / f"{STUDY}.json").read_text())["methods"]["patching"]
    assert [score for _, score in kept["tried"]] == scores
    assert kept["chosen"] == candidates[int(np.argmax(scores))]


@pytest.fixture
def curve(monkeypatch):
    script = load_script("experiments/domain_curve.py")
    shorten(script.study, monkeypatch)
    monkeypatch.setattr(script, "DOMAINS", ("domain 0", "domain 2"))
    monkeypatch.setattr(script, "STOPS", (0.04, 0.5))
    monkeypatch.setattr(script, "COEFFICIENTS", (0.5,))
    return script


def test_curve__ends_are_start_and_training(curve, tmp_path, monkeypatch):
    config = curve.study.Config(iterations=10, warmup=0)
    text = curve.write_curve(config, [0], 1e-2, tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())["methods"]
    assert (tmp_path / "curve.png").is_file() and "patching" in text
    stops = {"start", "stop 0.04", "stop 0.5", "end"}
    assert set(figures) == {*stops, "patch 0.5", "patching"}
    plain = {
        m: curve.study.run(config, m, tmp_path / m)[m]
        for m in ("zero-shot", "fine-tuning:0.01")
    }
    cell = json.loads((tmp_path / "seed_0/0.json").read_text())["points"]
    start, end = plain["zero-shot"]["before"], plain["fine-tuning:0.01"]["matrix"][0]
    for name, row in (("start", start), ("end", end)):
        values = [100 * row[0], 100 * row[1:].mean()]
        assert [cell[name][k] for k in ("learned", "others")] == pytest.approx(values)
    assert cell["start"]["icons"] == 100 * plain["zero-shot"]["icons"]
    monkeypatch.setattr(curve.study, "build_model", None)  # nothing is done again
    assert curve.write_curve(config, [0], 1e-2, tmp_path) == text


def test_curve__gains_of_patching(curve):
    points = {
        "start": {"learned": 0.0, "others": 10.0, "icons": 10.0},
        "stop 0.5": {"learned": 10.0, "others": 4.0, "icons": 9.0},
        "end": {"learned": 20.0, "others": 2.0, "icons": 0.0},
        "patch 0.5": {"learned": 5.0, "others": 8.0, "icons": 9.5},
        "patch 0.9": {"learned": 21.0, "others": 8.0, "icons": 9.5},
    }
    gains = curve.with_gains(points)
    assert gains["patch 0.5"]["others+"] == gains["patching"]["others+"] == 1
    assert gains["patch 0.5"]["icons+"] == 0
    assert np.isnan(gains["patch 0.9"]["others+"]) and np.isnan(gains["end"]["icons+"])


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
    # what was kept without a hash of the base is taken, that of another one is not
    for base, count in (("a", 2), ("b", 2)):
        settings = {"seed": 1, "base": base}
        domain_study.once(None, benchmark, ["test"], tmp_path, settings)
        assert len(calls) == count
    for base, count in (("a", 3), ("a", 3), ("b", 4)):
        settings = {"seed": 2, "base": base}
        domain_study.once(None, benchmark, ["test"], tmp_path, settings)
        assert len(calls) == count
