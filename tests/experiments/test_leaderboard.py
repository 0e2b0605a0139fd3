"""The leaderboard: cells are stored singly and known by their facts; one table."""

import importlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from avalanche_clip.common.files import read_json
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.training import plugins, supervised
from tests.scripts import ROOT

STUDY = "leaderboard"
CONFIG = {
    "model": "tiny-emoji-vit",
    "pretrained": "emoji-2010",
    "iterations": {"time": 1, "domain": 1, "language": 1},
    "train_mb_size": 4,
}


@pytest.fixture
def rows(study):
    return sys.modules[study.Row.__module__]


@pytest.fixture
def made(study, monkeypatch):
    """Cells are made without a process and without training; what was asked for."""
    asked = []

    def start(cell, config):
        cell.folder.mkdir(parents=True, exist_ok=True)
        asked.append(cell.name)
        if cell.row.name == "Killed":
            raise KeyboardInterrupt
        log = cell.folder / "log.txt"
        log.write_text("first\nRuntimeError: it broke")
        found = {"reason": "it does not fit"}
        if cell.row.name == "Busy":
            return study.BUSY, log
        if cell.row.name == "Broken":
            return 1, log
        if cell.row.name != "Refused":
            seed = cell.facts["seed"]
            found = {
                "figures": {"score": 10.0 + seed, "zero_shot": 5.0, "extra": 1.0},
                "cost": {"macs": 2e9, "seconds": 3, "memory": 900, "trainable": 7},
            }
        content = {"facts": cell.facts, "sources": {}, "found": found}
        study.write_json(cell.folder / "cell.json", content, checksum=True)
        return 0, log

    monkeypatch.setattr(study, "_start", start)
    return asked


def cells(study, out, *names, seeds=(0,), stream="time", base="b", config=CONFIG):
    return [
        study.make_cell(out, config, stream, study.Row(name), seed, base)
        for seed in seeds
        for name in names
    ]


def test_fill__goes_on_after_a_kill_with_the_cell_that_was_lost(study, made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study.fill(cells(study, tmp_path, "A", "Killed", "B"), CONFIG)
    assert made == ["time, A, seed 0", "time, Killed, seed 0"]
    made.clear()
    assert study.fill(cells(study, tmp_path, "A", "B"), CONFIG) == {}
    assert made == ["time, B, seed 0"]


def test_fill__a_stale_cell_is_made_again(study, made, tmp_path, monkeypatch):
    study.fill(cells(study, tmp_path, "A"), CONFIG)
    other = {**CONFIG, "iterations": {"time": 2}}
    row = study.Row("A", {"BudgetedReplayPlugin": {"kind": "all"}})
    stale = [
        *cells(study, tmp_path, "A", base="c"),
        *cells(study, tmp_path, "A", config=other),
        study.make_cell(tmp_path, CONFIG, "time", row, 0, "b"),
        study.make_cell(tmp_path, CONFIG, "time", study.Row("A"), 0, "b", {}),
    ]
    monkeypatch.setattr(study, "package_versions", lambda: {"torch": "9"})
    stale += cells(study, tmp_path, "A")
    assert [cell.read() for cell in stale] == [None] * 5
    made.clear()
    for cell in stale:
        study.fill([cell], CONFIG)
        assert cell.read() is not None
    assert len(made) == 5


def test_read__other_code_makes_a_cell_stale_other_words_do_not(study, tmp_path):
    (cell,) = cells(study, tmp_path, "A")
    module = tmp_path / "mine.py"
    module.write_text('def f():\n    """Two."""\n    return 2\n')
    hashes = sys.modules["sources"]
    kept = {"facts": cell.facts, "found": {"reason": "it does not fit"}}
    kept["sources"] = {str(module): hashes.content_hash(str(module))}
    cell.folder.mkdir(parents=True)
    study.write_json(cell.folder / "cell.json", kept, checksum=True)
    assert cell.read() == kept["found"]
    module.write_text('def f():\n    """Double."""\n    return 2  # really\n')
    assert cell.read() == kept["found"]
    module.write_text('def f():\n    """Two."""\n    return 3\n')
    assert cell.read() is None
    module.unlink()
    assert cell.read() is None


def test_sources__modules_loaded_since_and_the_data(study, tmp_path, monkeypatch):
    hashes = sys.modules["sources"]
    module = tmp_path / "loaded_late.py"
    module.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    known, since = set(sys.modules), time.time() + 60
    monkeypatch.setitem(sys.modules, "loaded_late", None)
    del sys.modules["loaded_late"]
    importlib.import_module("loaded_late")
    found = hashes.sources(known, since)
    assert found.pop(str(module)) == hashes.content_hash(str(module))
    data = "avalanche_clip/benchmarks/datasets/data/"
    assert f"{data}emoji_noto.webp" in found and f"{data}NOTICE" not in found
    assert not any(name.endswith((".py", ".safetensors")) for name in found)
    assert "avalanche_clip/common/lock.py" in hashes.sources(set(), since)
    assert not any("site-packages" in name for name in hashes.sources(set(), since))
    os.utime(module, (since + 1, since + 1))
    with pytest.raises(RuntimeError, match=r"^loaded_late\.py changed meanwhile"):
        hashes.sources(known, since)


def test_fill__a_setting_of_another_stream_is_no_fact(study, made, tmp_path):
    study.fill(cells(study, tmp_path, "A"), CONFIG)
    other = {**CONFIG, "iterations": {"time": 1, "domain": 7}}
    assert cells(study, tmp_path, "A", config=other)[0].read() is not None


def test_fill__what_fails_or_is_busy_is_told_and_the_others_are_made(
    study, made, tmp_path
):
    failed = study.fill(cells(study, tmp_path, "Busy", "Broken", "A"), CONFIG)
    assert failed["time, Busy, seed 0"] == "another process is making it"
    assert "RuntimeError: it broke" in failed["time, Broken, seed 0"]
    assert len(failed) == 2 and made[-1] == "time, A, seed 0"


def test_fill__a_cell_that_is_ready_in_the_end_is_not_missing(
    study, made, tmp_path, monkeypatch
):
    wanted = cells(study, tmp_path, "Busy", "A")
    start = study._start

    def other_process_ends(cell, config):
        if cell.row.name == "A":
            content = {"facts": wanted[0].facts, "sources": {}, "found": {"reason": ""}}
            study.write_json(wanted[0].folder / "cell.json", content, checksum=True)
        return start(cell, config)

    monkeypatch.setattr(study, "_start", other_process_ends)
    assert study.fill(wanted, CONFIG) == {}


def test_work__a_cell_of_another_process_is_left_to_it(study, tmp_path):
    (cell,) = cells(study, tmp_path, "A")
    with FolderLock(cell.folder):
        task = {"folder": str(cell.folder), "facts": cell.facts, "config": CONFIG}
        assert study.work(task) == study.BUSY


def test_table__mean_spread_reasons_and_gaps(study, made, tmp_path):
    chosen = [
        study.Row("A"),
        study.Row("Refused"),
        study.Row("Elsewhere", streams=("domain",), why="it needs classes"),
        study.Row("Broken"),
    ]
    wanted = cells(study, tmp_path, "A", "Refused", "Broken", seeds=(0, 1))
    text, figures = _table(study, chosen, (0, 1), wanted, tmp_path)
    assert "Stream time" in text
    assert "A             10.5 ±0.7        5.0 ±0.0        2.0 ±0.0" in text
    assert text.count("No result of Refused: it does not fit") == 1
    assert "No result of Elsewhere: it needs classes" in text
    assert "Missing: time, Broken, seed 0 (it failed" in text
    assert text in (tmp_path / "tables.txt").read_text()
    page = (tmp_path / "leaderboard.rst").read_text()
    assert "::\n\n   Stream time\n\n   method" in page
    assert figures["facts"]["seeds"] == [0, 1] and list(figures["methods"]) == ["A"]
    assert figures["methods"]["A"] == {
        "score": [10.0, 11.0],
        "zero-shot kept": [5.0, 5.0],
        "GMACs": [2.0, 2.0],
        "seconds": [3.0, 3.0],
        "peak MiB": [900.0, 900.0],
        "trainable k": [0.007, 0.007],
        "extra": [1.0, 1.0],
    }


def test_table__no_mean_over_fewer_seeds_and_the_best_first(study, made, tmp_path):
    chosen = [study.Row("A"), study.Row("B")]
    wanted = cells(study, tmp_path, "B", seeds=(0, 1)) + cells(study, tmp_path, "A")
    text, figures = _table(study, chosen, (0, 1), wanted, tmp_path)
    assert figures["methods"]["A"]["score"] == [10.0, None]
    lines = text.splitlines()
    rows = [line.split() for line in lines if line.startswith(("A ", "B "))]
    assert rows[0][:2] == ["B", "10.5"] and rows[1] == ["A", *"------"]


def _table(study, rows, seeds, wanted, out):
    tables = sys.modules["leaderboard_table"]
    failed = study.fill(wanted, CONFIG)
    found = [(cell, kept) for cell in wanted if (kept := cell.read())]
    text = tables.write_table(rows, ["time"], seeds, found, failed, CONFIG, "b", out)
    return text, read_json(out / "time" / "figures.json", dict, checksum=True)


def test_choose__best_candidate_is_used_by_the_table(
    study, made, tmp_path, monkeypatch
):
    grid = study.Row("A", candidates=({"lr": 1.0}, {"lr": 2.0}))
    monkeypatch.setattr(study, "search", _into(study.search, tmp_path))
    monkeypatch.setattr(study, "chosen", _into(study.chosen, tmp_path))
    monkeypatch.setattr(study, "search_table", _into(study.search_table, tmp_path))
    name = study.settings_file(CONFIG)
    with pytest.raises(ValueError, match=r"choose them with --search"):
        study.with_settings(grid, "time", name)
    assert study.choose([("time", grid)], tmp_path, CONFIG, "b") == {}
    assert made == ["time, A, seed 0, lr 1.0", "time, A, seed 0, lr 2.0"]
    assert study.with_settings(grid, "time", name).settings == {"lr": 1.0}
    like = study.Row("Sum", settings={"lr": 9.0, "other": 3}, like=("A",))
    assert study.with_settings(like, "time", name).settings == {"lr": 1.0, "other": 3}
    busy = study.Row("Busy", candidates=({"lr": 1.0}, {"lr": 2.0}))
    assert len(study.choose([("time", busy)], tmp_path, CONFIG, "b")) == 2
    # other scores, by other code, are other reasons to choose
    cell = tmp_path / "search" / "candidate_1" / "time" / "a" / "seed_0" / "cell.json"
    kept = read_json(cell, dict, checksum=True)
    kept["found"]["figures"]["score"] = 99.0
    study.write_json(cell, kept, checksum=True)
    study.choose([("time", grid)], tmp_path, CONFIG, "b")
    assert study.with_settings(grid, "time", name).settings == {"lr": 2.0}


def test_settings_file__is_that_of_the_base(study):
    assert study.settings_file({**CONFIG, "pretrained": "icons"}) == "leaderboard"
    own = {**CONFIG, "pretrained": "somewhere/mine.safetensors"}
    assert study.settings_file(own) == "leaderboard_mine"
    own["model"] = "small-emoji-vit"
    assert study.settings_file(own) == "leaderboard_small-emoji-vit_mine"


def _into(function, folder):
    return lambda *args: function(*args, folder=folder)


def test_rows__settings_of_a_plugin_and_of_the_strategy(study):
    row = study.Row("A", {"P": {"alpha": 1}}, {"lr": 0.1})
    other = row.changed({"P.alpha": 2, "lr": 0.2})
    assert other.plugins == {"P": {"alpha": 2}} and other.settings == {"lr": 0.2}
    assert row.plugins == {"P": {"alpha": 1}}
    with pytest.raises(ValueError, match=r"'Q.alpha' is no setting of 'A'"):
        row.changed({"Q.alpha": 2})


def test_rows__names_are_distinct_and_candidates_fit(study, rows):
    names = [row.name for row in rows.METHODS]
    assert len({study.slug(name) for name in names}) == len(names)
    assert set(rows.QUICK) <= set(names)
    for row in rows.METHODS:
        assert len(row.candidates) <= 3
        parts = [other for other in rows.METHODS if other.name in row.like]
        assert len(parts) == len(row.like) and not (row.like and row.candidates)
        for candidate in [c for part in [row, *parts] for c in part.candidates]:
            row.changed(candidate)
        assert set(row.streams) == set(rows.STREAMS) or row.why
        assert all(hasattr(plugins, name) for name in row.plugins)


@pytest.mark.parametrize(
    "name",
    [cls.__name__ for cls in supervised.TIC_STRATEGIES.values()]
    + ["ModX", "VRLwF", "LoRA", "CCLIP"],
)
def test_rows__named_strategies_have_the_plugins_of_theirs(name, rows):
    from avalanche_clip.models import create_dual_encoder

    (row,) = [row for row in rows.METHODS if row.name == name]
    strategy = getattr(supervised, name)(
        model=create_dual_encoder("tiny-emoji-vit"), budget_iterations=1, evaluator=None
    )
    have = [type(plugin).__name__ for plugin in strategy.plugins]
    assert [plugin for plugin in have if plugin in row.plugins] == list(row.plugins)


def test_measure__a_refusal_is_the_reason(study, tmp_path):
    streams = _streams()
    config = streams.Config(**CONFIG)
    row = study.Row("A", {"OffDiagonalAlignmentPlugin": {}})
    found = streams.measure(config, "domain", row, 0, tmp_path, validation=False)
    assert list(found) == ["reason"]
    assert "it aligns the square matrix of image-text pairs" in found["reason"]


def test_measure__a_training_that_diverges_has_no_result(study, tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError("the loss is nan")

    streams = _streams()
    monkeypatch.setattr(streams, "run_stream", diverge)
    config, row = streams.Config(**CONFIG), study.Row("A")
    found = streams.measure(config, "time", row, 0, tmp_path, validation=False)
    assert found == {"reason": "the loss is nan"}


def test_figures__by_hand(study):
    streams = _streams()
    E = np.array([[0.5, 0.1], [0.2, 0.4]])
    # in-domain (0.5 + 0.4) / 2, backward 0.2
    assert streams.TimeWorld.figures(None, E)["score"] == pytest.approx(32.5)
    # Average (0.35 + 0.25) / 2, Last 0.3
    assert streams.DomainWorld.figures(None, E)["score"] == pytest.approx(30)
    assert streams.LanguageWorld.figures(None, E)["score"] == pytest.approx(30)
    once = streams._square(E[:1])
    assert streams.TimeWorld.figures(None, once)["score"] == pytest.approx(
        (30 + 50) / 2
    )


def test_language__joint_training_forgets_rows_as_slowly(study):
    streams = _streams()
    decays = []
    for merged in (1, 6):
        world = object.__new__(streams.LanguageWorld)
        world.config, world.merged = streams.Config(**CONFIG), merged
        world.iterations, world.benchmark = merged, None
        decays.append(world.options(1e-3)["weight_decay"])
    assert decays[0] == decays[1] > 0


def _streams():
    folder = str(ROOT / "experiments")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("leaderboard_streams")
    finally:
        sys.path.remove(folder)


def test_work__a_cell_from_its_task(study, tmp_path, monkeypatch):
    streams = _streams()
    monkeypatch.setitem(streams.WORLDS, "time", _short(streams.TimeWorld))
    asked = []
    accuracies = streams.accuracies
    monkeypatch.setattr(
        streams, "accuracies", lambda *args: asked.append(args[2:]) or accuracies(*args)
    )
    (cell,) = cells(study, tmp_path, "Sequential")
    (cell.folder / "run").mkdir(parents=True)
    (cell.folder / "run" / "results.json").write_text("left by a killed process")
    task = {"folder": str(cell.folder), "facts": cell.facts, "config": CONFIG}
    assert study.work(json.loads(json.dumps(task))) == 0
    found = cell.read()
    assert found["cost"]["macs"] > 0 and found["cost"]["memory"] > 100
    assert found["cost"]["trainable"] > 10**6
    assert 0 <= found["figures"]["zero_shot"] <= 100
    assert asked == [("icons", "image_to_text_R@1")]
    assert not (cell.folder / "run" / "checkpoints").exists()


def _short(world):
    """The first two steps of a stream, with few tests."""
    from avalanche_clip.benchmarks import make_experience, make_scenario

    class Short(world):
        def build(self):
            scenario = super().build()
            short = {
                name: [
                    make_experience(e.dataset.subset(range(8)), time_label=f"{k}")
                    for k, e in enumerate(scenario.streams[name][:2])
                ]
                for name in ("train", "test", "icons")
            }
            return make_scenario(short, scenario)

    return Short


def test_main__a_cell_in_a_process_of_its_own(study, tmp_path):
    (cell,) = cells(study, tmp_path, "A")
    task = {"folder": str(cell.folder), "facts": cell.facts, "config": CONFIG}
    with FolderLock(cell.folder):
        done = subprocess.run(
            [sys.executable, str(ROOT / "experiments" / "leaderboard.py"), "--cell"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == study.BUSY, done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--methods FineTuning --streams language", "choose them with --search"),
        ("--search --methods Sequential", "nothing to choose on these streams"),
        ("--search --quick", "leave out --seeds and --quick"),
        ("--search --seeds 1", "leave out --seeds and --quick"),
        ("--quick --model tiny", "tiny"),
        ("--quick --pretrained none.safetensors", "none.safetensors"),
    ],
)
def test_main__wrong_arguments_in_one_line(
    study, arguments, message, tmp_path, monkeypatch, capsys
):
    _streams()  # which the command imports from its own folder
    monkeypatch.setattr(study, "chosen", _into(study.chosen, tmp_path))
    with pytest.raises(SystemExit) as ended:
        study.main([*arguments.split(), "--out", str(tmp_path)])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in said[-1]
