"""The study of emoji in 36 languages: methods, table and command line."""

import math
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import held_out_icons, multilingual_emoji
from avalanche_clip.common.files import read_json
from tests.damage import not_refused
from tests.training.languages import language_stream, tiny_model

STUDY = "languages_emoji"
GROWTH = [
    {"language": "en", "new": 60, "reachable": 50, "size": 1500},
    {"language": "it", "new": 40, "reachable": 10, "size": 2000},
]


TABLE = {
    "mean before": 0.0,
    "std before": 0.021,
    "length before": 0.2,
    "std of lengths before": 0.1,
    "length of a row of TEIR": 0.24,
    "std after": 0.025,
    "std of new rows": 0.03,
    "drift of old rows": 0.25,
}


def found(rows, growth=GROWTH):
    """A finished run with the given recalls."""
    E = np.array(rows)
    names = ("text_to_image_R@1", "image_to_text_R@1", "mean_R@1")
    return {
        "matrices": {name: E for name in names},
        "before": {name: E[0] for name in names},
        "labels": ["en", "it", "de"][: E.shape[1]],
        "icons": [0.2, *[0.2] * (len(E) - 1), 0.15],
        "growth": growth,
        "table": TABLE,
        "seconds": {"train": 2.0, "eval": 1.0},
    }


def strategy_of(study, method, config=None):
    model = tiny_model()
    config = config or study.Config(vocab_size=300, languages=3)
    stream = language_stream(model)
    return study.build_strategy(config, method, model, stream), stream


# ------------------------------------------------------------ table and plots
def test_line__hand_computed(study):
    nan = float("nan")
    line = study.study_line(found([[0.5, nan], [0.3, 0.4]]))
    assert line["AR"] == pytest.approx(35) and line["en"] == pytest.approx(30)
    assert line["F"] == pytest.approx(20) and line["F en"] == pytest.approx(20)
    assert line["new"] == pytest.approx(45) and line["AR both"] == pytest.approx(35)
    assert line["tokens/1000"] == 2 and line["reachable %"] == 60
    assert line["icons"] == pytest.approx(15)
    assert line["icons lost"] == pytest.approx(5)
    assert line["std before"] == 21 and line["old moved %"] == 25


def test_table_facts__hand_computed(study):
    base = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    spread = np.std([3, 0, 0, 4], ddof=1)
    end = torch.tensor([[3.0, 3.0], [0.0, 0.0], [1.0, 3.0]])
    facts = study.table_facts(base, end)
    assert facts["mean before"] == 1.75
    assert facts["std before"] == pytest.approx(spread)
    assert facts["length before"] == 3.5
    assert facts["std of lengths before"] == pytest.approx(np.sqrt(0.5))
    assert facts["length of a row of TEIR"] == pytest.approx(spread * np.sqrt(2))
    assert facts["std after"] == pytest.approx(np.std([3, 3, 0, 0, 1, 3], ddof=1))
    assert facts["std of new rows"] == pytest.approx(np.sqrt(2))
    assert facts["drift of old rows"] == 1.0  # length 5 of 5
    assert math.isnan(study.table_facts(base, base)["std of new rows"])


def test_line__of_one_step_has_no_forgetting(study):
    line = study.study_line(found([[0.5, 0.1, 0.3]], growth=[]))
    assert line["AR"] == pytest.approx(30) and line["en"] == 50
    for name in ("F", "F en", "new", "tokens/1000", "reachable %"):
        assert np.isnan(line[name])


def test_study__figures_gains_and_plots(study, tmp_path):
    from language_study import gain_lines

    nan = float("nan")
    one, two = found([[0.5, nan], [0.3, 0.4]]), found([[0.5, nan], [0.5, 0.4]])
    low, joint = found([[0.5, nan], [0.1, 0.2]]), found([[0.5, 0.4]])
    runs = {"teir": [one, two], "cll-clip": [low, one], "init-only": [low, two]}
    text = study.write_study({**runs, "joint": [joint, joint]}, tmp_path, {"seeds": 2})
    assert "20.0 before" in text and "0.200 long" in text
    row = next(line for line in text.splitlines() if line.startswith("teir"))
    assert row.split()[1:5] == ["40.0", "±7.1", "10.0", "±14.1"]
    kept = read_json(tmp_path / "figures.json", checksum=True)
    assert kept["methods"]["teir"]["AR"] == pytest.approx([35, 45])
    assert kept["facts"]["table"] == TABLE and kept["facts"]["icons before"] == 0.2
    gains = read_json(tmp_path / "gains/figures.json", checksum=True)["methods"]
    assert list(gains) == ["teir", "init-only"]
    assert gains["teir"]["AR+"] == pytest.approx([20, 10])
    assert gains["teir"]["F+"] == pytest.approx([-20, -20])
    assert gains["teir"]["share %"] == pytest.approx([100, 100])
    assert gains["init-only"]["share %"] == pytest.approx([0, 100])
    line = study.study_line(one)
    rates = {"teir:0.1": [line], "cll-clip:0.1": [line], "init-only:0.2": [line]}
    (again,) = gain_lines(rates)["teir:0.1"]
    assert again["AR+"] == 0 and math.isnan(again["share %"])
    assert len(gain_lines(rates)) == 1 and not gain_lines({"teir": [line]})
    study.write_plots({"teir": [one, two], "joint": [joint]}, tmp_path)
    assert (tmp_path / "languages.png").is_file()
    assert (tmp_path / "curves.png").is_file()


# -------------------------------------------------------------------- methods
@pytest.mark.parametrize(
    "method, init, regularize, trainable",
    [
        ("cll-clip", "normal", None, "tokens"),
        ("teir", "teir", "gd", "tokens"),
        ("init-only", "teir", None, "tokens"),
        ("regularize-only", "normal", "gd", "tokens"),
        ("teir-snapshots", "teir", "gd", "tokens"),
        ("fine-tune", "normal", None, "text"),
        ("fine-tune+teir", "teir", "gd", "text"),
        ("frozen", "teir", "gd", "nothing"),
        ("er", "normal", None, "tokens"),
        ("er+teir", "teir", "gd", "tokens"),
        ("oewc", "normal", None, "tokens"),
        ("mla+teir", "teir", "gd", "tokens"),
        ("lora", "normal", None, "tokens"),
    ],
)
def test_build_strategy__forms_of_the_method(
    method, init, regularize, trainable, study
):
    config = study.Config(vocab_size=300, languages=3, task_decay=0.2)
    strategy, _ = strategy_of(study, method, config)
    assert strategy.expansion.weight_decay == study.weight_decay(config, method)
    assert strategy.warmup_fraction == study.WARMUP
    assert strategy.expansion.init == init
    assert strategy.expansion.regularize == regularize
    assert strategy.trainable == trainable
    scope = "language" if method.endswith("snapshots") else "latest"
    assert strategy.model.tokenizer.scope == scope


@pytest.mark.parametrize("teir", ["", "+teir"])
@pytest.mark.parametrize(
    "name, plugin, key, value",
    [
        ("er", "ReservoirReplayPlugin", "target", "teacher"),
        ("der", "ReservoirReplayPlugin", "target", "student"),
        ("oewc", "OnlineEWCPlugin", "ewc_lambda", 1000.0),
        ("mla", "LanguageAdapterPlugin", "kind", "mla"),
        ("lora", "LanguageAdapterPlugin", "kind", "lora"),
    ],
)
def test_build_plugins__of_the_baselines(name, plugin, key, value, teir, study):
    (made,) = study.build_plugins(study.Config(), name + teir)
    assert type(made).__name__ == plugin and getattr(made, key) == value


def test_weight_decay__published_value_and_the_same_shrinking_of_short_runs(study):
    published = study.Config(iterations=13_281, lr=5e-5)
    assert study.weight_decay(published, "teir") == pytest.approx(0.05, rel=1e-3)
    config = study.Config(iterations=60, lr=2e-3, text_lr=1e-3)
    for method, rate in (("cll-clip", 2e-3), ("fine-tune", 1e-3), ("er:0.004", 4e-3)):
        decay = study.weight_decay(config, method)
        factor = math.prod(1 - rate * min(i / 6, 1) * decay for i in range(60))
        assert factor == pytest.approx(0.96895, abs=5e-4)


def test_learning_rate__of_its_kind_or_behind_the_colon(study):
    config = study.Config(lr=0.1, text_lr=0.2)
    assert study.learning_rate(config, "er+teir") == 0.1
    assert study.learning_rate(config, "fine-tune+teir") == 0.2
    assert study.learning_rate(config, "fine-tune:0.003") == 0.003
    strategy, _ = strategy_of(study, "teir:0.004")
    assert {g["lr"] for g in strategy.optimizer.param_groups} == {0.004}


def test_joint__has_all_captions_and_updates(study):
    config = study.Config(vocab_size=300, languages=3, iterations=5)
    strategy, _ = strategy_of(study, "joint", config)
    assert strategy.compute.iterations == 15
    assert strategy.expansion.vocab_size == 900
    assert {"red cat", "rote katze", "σπίτι"} <= set(
        strategy.expansion.oracle_vocabulary
    )


@pytest.fixture
def few_emoji(monkeypatch):
    """Forty emoji in place of the 719 of 2010, and ten icons."""
    few = partial(multilingual_emoji, emoji=np.arange(40))
    icons = held_out_icons().subset(range(10))
    monkeypatch.setattr("avalanche_clip.benchmarks.multilingual_emoji", few)
    monkeypatch.setattr("avalanche_clip.benchmarks.held_out_icons", lambda: icons)


def test_benchmark__has_features_and_no_pictures(
    study, few_emoji, tmp_path, monkeypatch
):
    config = study.Config(languages=2, validation=True, pretrained="emoji-2010")
    model = study.build_model(config)
    stream = study.build_benchmark(config, model, tmp_path / "store")
    monkeypatch.setattr(type(model), "encode_image", None)
    for name, has_text in (("train", True), ("test", False), ("valid", False)):
        first = stream.streams[name][1].dataset
        batch, *_ = first.collate_fn([first[k] for k in range(3)])
        assert batch["image"].shape == (3, 0)
        assert batch["teacher_image"].shape == (3, model.embed_dim)
        assert ("teacher_text" in batch) == has_text
    (icons,) = stream.streams["icons"]
    first = icons.dataset[0]
    batch, *_ = icons.dataset.collate_fn([first])
    assert batch["teacher_image"].shape == (1, model.embed_dim)
    assert icons.language == "en" and batch["language"].tolist() == [0]
    sizes = [len(stream.streams[n][1].dataset) for n in ("train", "test", "valid")]
    assert sizes[0] + sizes[2] == 2 * sizes[1]


# -------------------------------------------------------------------- testing
def test_evaluation__on_languages_learned_so_far(study):
    config = study.Config(vocab_size=300, languages=3, iterations=1)
    strategy, stream = strategy_of(study, "teir", config)

    def tested():
        values = strategy.eval(stream.test_stream)
        names = [k for k in values if k.startswith("mean_R@1/") and "Exp" in k]
        return sorted(int(name[-3:]) for name in names)

    assert tested() == [0, 1, 2]
    strategy.train(stream.train_stream[0])
    assert tested() == [0]
    strategy.train(stream.train_stream[1])
    assert tested() == [0, 1]


def finished(one):
    """What a stream returns of a run with these recalls."""
    E, before = one["matrices"], one["before"]
    icons = np.array(one["icons"])
    known = {"E": icons[1:, None], "before": icons[:1]}
    return SimpleNamespace(
        matrices={
            "test": {n: {"E": E[n], "before": before[n]} for n in E},
            "icons": {"image_to_text_R@1": known},
        },
        results={
            "data": {"labels": {"test": one["labels"]}},
            "seconds": {"train": [1.0, 2.0], "eval": [3.0]},
        },
    )


def test_study__is_found_again_for_the_same_settings(study, tmp_path, monkeypatch):
    settings = {"method": "teir", **asdict(study.Config(seed=3))}
    one = found([[0.5, float("nan")], [0.3, 0.4]])
    study.save_study(tmp_path, settings, finished(one), [], TABLE)
    again = study.run(replace(study.Config(seed=3), device="cuda"), "teir", tmp_path)
    for name, E in one["matrices"].items():
        np.testing.assert_array_equal(again["matrices"][name], E)
    assert again["seconds"] == {"train": 3.0, "eval": 3.0}
    assert again["icons"] == one["icons"] and again["table"] == TABLE
    assert study.read_study(tmp_path, {**settings, "seed": 4}) is None
    study.save_study(tmp_path, {**settings, "base": "a"}, finished(one), [], TABLE)
    assert study.read_study(tmp_path, {**settings, "base": "b"}) is None
    assert study.read_study(tmp_path, {**settings, "base": "a"})


def test_study__file_is_whole_or_refused(study, tmp_path):
    import language_study

    one = found([[0.5, math.nan], [0.3, 0.4]])
    assert {*language_study.METRICS} <= {*one["matrices"]}
    table = {**TABLE, "std of new rows": math.nan}  # the table of a frozen model
    kept = study.save_study(tmp_path, {"seed": 0}, finished(one), [], table)
    for values in (kept, study.read_study(tmp_path, {"seed": 0})):
        assert math.isnan(values["table"]["std of new rows"])
        for key in ("matrices", "before"):
            for name, expected in one[key].items():
                np.testing.assert_array_equal(values[key][name], expected)
    path = tmp_path / language_study.STUDY_FILE
    read = lambda: study.read_study(tmp_path, {"seed": 0})  # noqa: E731
    assert not_refused(path, read, folder=False) == []


# --------------------------------------------------------------- command line
@pytest.fixture
def settings(study, tmp_path, monkeypatch):
    """A folder of chosen settings, with none in it."""
    for name in ("chosen", "search", "search_table"):
        own = partial(getattr(study, name), folder=tmp_path / "settings")
        monkeypatch.setattr(study, name, own)
    return tmp_path / "settings"


def test_search__one_rate_for_all_of_a_kind(study, settings, tmp_path, monkeypatch):
    levels = {"cll-clip": 0.1, "teir": 0.3, "fine-tune": 0.6, "fine-tune+teir": 0.2}
    asked = []

    def run(config, method, folder):
        best = config.text_lr == 1e-3 if "fine" in method else config.lr == 4e-3
        asked.append((config.validation, config.seed, config.languages))
        assert folder.parent == tmp_path / "out"
        return found([[levels[method] + best / 10]])

    monkeypatch.setattr(study, "run", run)
    study.main(["--search", "--out", str(tmp_path / "out")])
    assert {*asked} == {(True, 0, study.QUICK)} and len(asked) == 18
    kept = read_json(settings / "languages_emoji.json", checksum=True)["methods"]
    scores = [score for _, score in kept["tokens"]["tried"]]
    assert scores == pytest.approx([20, 20, 30, 20, 20])
    for method, rate in (("er+teir", 4e-3), ("fine-tune", 1e-3), ("teir:0.5", 0.5)):
        config = study.configured(study.Config(), method)
        assert study.learning_rate(config, method) == rate


def test_main__asks_for_a_search_where_no_rate_was_chosen(study, settings, capsys):
    with pytest.raises(SystemExit):
        study.main(["--methods", "teir"])
    assert "has no settings for 'tokens'" in capsys.readouterr().err


@pytest.mark.slow
def test_main__killed_run_goes_on(
    study, settings, few_emoji, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(study, "QUICK", 2)
    methods = "teir:2e-3,fine-tune:1e-3,frozen,joint:2e-3"
    base = ["--quick", "--iterations", "2", "--methods", methods]
    base += ["--pretrained", "emoji-2010"]
    study.main([*base, "--out", str(tmp_path / "whole")])
    whole = capsys.readouterr().out.replace("/whole/", "/")
    assert "\nfine-tune:1e-3 " in whole
    assert (tmp_path / "whole/comparison.html").is_file()

    from avalanche_clip.training.runs import stream

    evaluate = stream._Run.evaluate

    def killed(run, row):
        if row == 2:
            raise KeyboardInterrupt
        evaluate(run, row)

    part = [*base, "--out", str(tmp_path / "part")]
    with monkeypatch.context() as patch:
        patch.setattr(stream._Run, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            study.main(part)
    capsys.readouterr()
    for _ in range(2):  # the second time nothing is left to do
        study.main(part)
        assert capsys.readouterr().out.replace("/part/", "/") == whole
