"""The alignment study: its methods, streams, figures, search and command line."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array
from avalanche_clip.benchmarks.datasets import load_emoji_table
from avalanche_clip.benchmarks.items.scenario import clone_experience, make_scenario
from avalanche_clip.training.templates.step import NonFiniteLossError
from tests.scripts import load_script

STUDY = "alignment"
GIVEN = dict.fromkeys(("mod-x", "lwf", "vr-lwf", "zscl", "lora", "c-clip"), 1.0)
OLD_BASE = ["--pretrained", "emoji-2010", "--iterations", "1"]


@pytest.fixture(scope="module")
def figures():
    return load_script("experiments/alignment_study.py")


@pytest.fixture
def folder(study, tmp_path, monkeypatch):
    """Where settings are kept, empty."""
    own = {"folder": tmp_path / "settings"}
    for name in ("chosen", "search", "search_table"):
        call = getattr(study, name)
        monkeypatch.setattr(
            study, name, lambda *args, call=call, **options: call(*args, **own)
        )
    return tmp_path / "settings"


@pytest.fixture
def small(study, monkeypatch):
    """Two short steps, and few drawings in each test."""
    build = study.build_benchmark

    def shortened(config, stream, model):
        scenario = build(config, stream, model)
        streams = {
            name: [
                clone_experience(e, e.dataset.subset(range(20)))
                for e in list(found)[:2]
            ]
            for name, found in scenario.streams.items()
        }
        return make_scenario(streams, scenario)

    monkeypatch.setattr(study, "build_benchmark", shortened)


def names(plugins):
    return [type(plugin).__name__ for plugin in plugins]


# ------------------------------------------------------------- methods, settings
def test_build_plugins__of_sums(study):
    config = study.Config(weights={"mod-x": 2.0, "lwf": 3.0})
    assert study.build_plugins(config, "sequential:1e-4") == []
    both = study.build_plugins(config, "mod-x:2+lwf+replay")
    assert names(both) == [
        "OffDiagonalAlignmentPlugin",
        "ContrastiveLwFPlugin",
        "BudgetedReplayPlugin",
    ]
    assert both[0].alpha == 2 and both[1].lwf_weight == 3
    assert both[2].buffer_size == config.buffer_size


@pytest.mark.parametrize("method", ["lwf", "vr-lwf", "zscl", "lora", "c-clip"])
def test_build_plugins__every_method(method, study):
    assert names(study.build_plugins(study.Config(weights=GIVEN), method))


def test_methods_for__low_rank_updates_need_two_transformers(study):
    assert "lora" not in study.methods_for("tiny-emoji")
    assert "lora" in study.methods_for("tiny-emoji-vit")
    study.check_methods(["lora:8+replay"], "tiny-emoji-vit")
    with pytest.raises(ValueError, match="with --model tiny-emoji-vit also lora"):
        study.check_methods(["lora:8"], "tiny-emoji")
    with pytest.raises(ValueError, match="a lora of its own"):
        study.check_methods(["lora+c-clip"], "tiny-emoji-vit")


def test_configured__given_settings_win_over_chosen_ones(study, folder):
    base = study.Config()
    with pytest.raises(ValueError, match=r"no settings for 'mod-x'.*--search"):
        study.configured(base, "mod-x", 1e-3)
    given = study.configured(base, "mod-x:7.5+replay", 1e-3)
    assert given.weights == {"mod-x": 7.5} and given.lr == 1e-3
    own = load_script("experiments/search.py")
    grid = {"sequential": [{"lr": 0.5}], "mod-x": [{"weight": 9.0}]}
    own.search("alignment", grid, lambda *_: 0.0, {}, folder=folder)
    taken = study.configured(base, "mod-x+lwf:2")
    assert taken.lr == 0.5 and taken.weights == {"mod-x": 9.0, "lwf": 2.0}
    assert study.configured(base, "sequential:1e-4", 1e-3).lr == 1e-4
    with pytest.raises(ValueError, match="no settings for 'sequential'"):
        study.configured(replace(base, pretrained="a/b.safetensors"), "sequential")


def test_default_methods__fine_tune_at_every_rate_once(study, folder):
    own = load_script("experiments/search.py")
    grid = {"sequential": [{"lr": study.RATES[1]}]}
    own.search("alignment", grid, lambda *_: 0.0, {}, folder=folder)
    found = study.default_methods(study.Config())
    plain = [m for m in found if m.startswith("sequential")]
    assert (
        len(plain) == len(study.RATES) and f"sequential:{study.RATES[1]}" not in plain
    )
    study.check_methods(found, "tiny-emoji")


# ------------------------------------------------------------------------ streams
def test_two_domains__share_the_later_emoji(study):
    scenario = study.two_domains()
    table = load_emoji_table()
    assert list(scenario.streams) == ["train", "test", "base", "gallery"]
    assert scenario.time_labels == ["living", "things"]
    found = [attribute_array(e.dataset, "targets") for e in scenario.test_stream]
    assert not np.intersect1d(*found).size
    assert np.array_equal(np.sort(np.concatenate(found)), np.flatnonzero(table.step))
    for part, expected in zip(found, (True, False), strict=True):
        groups = {table.groups[g] for g in table.group[part]}
        assert all((g in study.LIVING) == expected for g in groups)
    train = [attribute_array(e.dataset, "targets") for e in scenario.train_stream]
    assert [len(t) for t in train] == [2 * len(t) for t in found]


def test_validation_shows_nothing_that_is_tested(study):
    from avalanche_clip.models import create_dual_encoder

    config = study.Config(pretrained="emoji-2010")
    model = create_dual_encoder(config.model, config.pretrained)
    tested = study.build_benchmark(config, "time", model).streams
    held = study.build_benchmark(replace(config, validation=True), "time", model)
    seen = {
        sample
        for name in study.VALIDATION_STREAMS
        for e in held.streams[name]
        for sample in attribute_array(e.dataset, "sample_id").tolist()
    }
    icons = attribute_array(tested["icons"][0].dataset, "sample_id")
    other = attribute_array(held.streams["icons"][0].dataset, "sample_id")
    assert len(icons) > 3 * len(other) > 300
    for name in study.STREAMS:
        for e in tested[name]:
            assert seen.isdisjoint(attribute_array(e.dataset, "sample_id").tolist())
    for e in (*held.streams["train"], *tested["train"]):
        trained = attribute_array(e.dataset, "sample_id")
        assert not np.isin(trained, [*icons, *other]).any()
    trained = [attribute_array(e.dataset, "sample_id") for e in held.streams["train"]]
    assert seen.isdisjoint(np.concatenate(trained).tolist())


# ------------------------------------------------------------------------ figures
def fake_result(figures, E, before, kind="test"):
    parts = {"E": np.array(E), "before": np.array(before)}
    one = {"E": np.array([[0.3], [0.1]]), "before": np.array([0.4])}
    icons = {"image_to_text_R@1": {"E": np.array([[0.2], [0.15]]), "before": [0.25]}}
    icons["image_to_text_R@1"]["before"] = np.array([0.25])
    both = {"mean_R@1": one}
    curves = {"initial": {key: [1.0, 2.0] for key in figures.DISORDER}}
    return SimpleNamespace(
        matrices={
            kind: {"mean_R@1": parts},
            "base": both,
            "gallery": both,
            "icons": icons,
        },
        results={"metrics": {"SpatialDisorder": curves}},
        compute={"total_macs": 30.0, "macs": [{"train": 10.0}]},
    )


def test_run_line__by_hand(figures):
    result = fake_result(figures, [[0.5, 0.1], [0.2, 0.4]], [0.3, 0.2])
    line = figures.run_line(result)
    wanted = {"2010": 10, "old": 15, "new": 45, "later": 10, "icons": 15}
    wanted |= {"gallery": 10, "imd_mean": 2, "cost": 3}
    assert {k: line[k] for k in wanted} == pytest.approx(wanted)
    base = figures.base_line(result)
    wanted = {"2010": 40, "old": 35, "new": 25, "later": 20, "icons": 25, "cost": 0}
    assert {k: base[k] for k in wanted} == pytest.approx(wanted)
    assert list(base) == list(line)
    assert figures.score(line) == pytest.approx((15 + 45 + 15) / 3)
    valid = fake_result(figures, np.eye(2), [0, 0], "valid")
    assert list(figures.run_line(valid)) == list(figures.base_line(valid))
    assert "gallery" not in figures.run_line(valid)


def test_kept_at__leaves_out_what_is_worse_in_both(figures):
    points = [(0.0, 20.0), (10.0, 12.0), (8.0, 5.0), (12.0, 2.0)]
    assert figures.frontier(points) == [(0, 20), (10, 12), (12, 2)]
    assert figures.kept_at(points, 8) == pytest.approx(13.6)
    assert figures.kept_at(points, 11) == pytest.approx(7)
    assert np.isnan(figures.kept_at(points, 12.5))
    assert figures.kept_at([(5.0, 9.0), (2.0, 8.0)], 1) == 9  # by who learns more, too


def test_with_gains__against_fine_tuning_of_the_same_seed(figures):
    def line(new, kept):
        return {"new": new, **dict.fromkeys(figures.KEPT, kept)}

    bases = [line(0, 20), line(0, 30)]
    lines = {
        "sequential": [line(10, 10), line(10, 20)],
        "sequential:0.1": [line(20, 0), line(20, 2)],
        "mod-x:3+replay": [line(15, 11), line(30, 1)],
    }
    found = figures.with_gains(lines, bases)
    first, second = found["mod-x:3+replay"]
    assert first["icons+"] == pytest.approx(11 - 5)
    assert np.isnan(second["old+"])  # learns more than fine-tuning ever did
    assert np.isnan(found["sequential"][0]["old+"])
    del lines["sequential:0.1"]
    assert figures.with_gains(lines, bases) == lines
    assert figures.family("mod-x:3+lwf:1+replay") == "mod-x+lwf+replay"


# ------------------------------------------------------------------- command line
@pytest.mark.slow
def test_main__validation_run_and_resume(study, small, tmp_path, capsys):
    arguments = [*OLD_BASE, "--validation", "--lr", "3e-4", "--out", str(tmp_path)]
    arguments += ["--methods", "sequential:1e-3,mod-x:5"]
    study.main(arguments)
    first = capsys.readouterr().out
    assert "mod-x:5 " in first
    assert (tmp_path / "comparison.html").is_file()
    study.main(arguments)
    assert capsys.readouterr().out == first
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["facts"]["settings"]["sequential:1e-3"]["lr"] == 1e-3
    assert set(found["methods"]) == {"base", "sequential:1e-3", "mod-x:5"}
    assert all(len(v) == 1 for v in found["methods"]["mod-x:5"].values())


def test_main__search_chooses_the_rate_first(
    study, figures, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(study, "RATES", (1e-4, 3e-4, 1e-3, 1e-2))
    monkeypatch.setattr(study, "WEIGHTS", {"mod-x": (5.0, 9.0)})
    runs = []

    def run(config, stream, method, out):
        runs.append((method, config.lr))
        if config.lr == 1e-2:
            raise NonFiniteLossError("the loss is nan")
        assert config.validation and stream == "time" and config.seed == 0
        level = {3e-4: 0.3}.get(config.lr, 0.1) + config.weights.get("mod-x", 0) / 100
        E = np.array([[level, 0.1], [0.2, level]])
        return fake_result(figures, E, [0.1, 0.1], "valid")

    monkeypatch.setattr(study, "run", run)
    study.main([*OLD_BASE, "--search", "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    plain = [("sequential:0.0001", 1e-4), ("sequential:0.0003", 3e-4)]
    plain += [("sequential:0.001", 1e-3), ("sequential:0.01", 1e-2)]
    found = [*plain, ("mod-x:5", 3e-4), ("mod-x:9", 3e-4)]
    assert runs[:6] == found and runs[6:] == found  # the second time for the table
    path = folder / "alignment_tiny-emoji_emoji-2010.json"
    kept = json.loads(path.read_text())["methods"]
    assert kept["sequential"]["chosen"] == {"lr": 3e-4}
    assert kept["mod-x"]["chosen"] == {"weight": 9} and "lr" in kept["mod-x"]["facts"]
    assert "* mod-x" in text and "icons+" in text
    assert text.count("sequential") == 4 + 3 * 2 and "diverged  lr 0.01" in text
    assert (tmp_path / "out" / "tradeoff.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--methods mod-y", "unknown method mod-y; use sequential"),
        ("--methods replay:3", "replay has no weight"),
        ("--methods mod-x:much", "must be a positive number"),
        ("--methods sequential+mod-x:3", "sequential is a sum of none"),
        ("--methods mod-x:3+mod-x:4", "each method once"),
        ("--search --stream domains", "go with --stream time"),
        ("--search --seeds 1", "seed 0"),
        ("--search --methods mod-x:3", "--search is for mod-x"),
        ("--pretrained emoji-2010", "choose them with --search"),
        ("--pretrained emoji-2011", "emoji-2011"),
    ],
)
def test_main__refusals(study, capsys, arguments, words):
    with pytest.raises(SystemExit):
        study.main(["--pretrained", "emoji-2010", *arguments.split()])
    assert words in capsys.readouterr().err
