"""The leaderboard: cells are stored singly and known by their facts; one table."""

import json
import subprocess
import sys

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
        content = {"facts": cell.facts, "found": found}
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
        study.make_cell(
            tmp_path, CONFIG, "time", study.Row("A"), 0, "b", validation=True
        ),
    ]
    monkeypatch.setattr(study.avalanche_clip, "__version__", "9")
    stale += cells(study, tmp_path, "A")
    assert [cell.read() for cell in stale] == [None] * 5
    made.clear()
    for cell in stale:
        study.fill([cell], CONFIG)
        assert cell.read() is not None
    assert len(made) == 5


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


def test_work__a_cell_of_another_process_is_left_to_it(study, tmp_path):
    (cell,) = cells(study, tmp_path, "A")
    with FolderLock(cell.folder):
        task = {"folder": str(cell.folder), "facts": cell.facts, "config": CONFIG}
        assert study.work(task) == study.BUSY


def test_table__mean_spread_reasons_and_gaps(study, made, tmp_path):
    tables = sys.modules["leaderboard_table"]
    chosen = [
        study.Row("A"),
        study.Row("Refused"),
        study.Row("Elsewhere", streams=("domain",), why="it needs classes"),
        study.Row("Broken"),
    ]
    wanted = cells(study, tmp_path, "A", "Refused", "Broken", seeds=(0, 1))
    failed = study.fill(wanted, CONFIG)
    found = [(cell, kept) for cell in wanted if (kept := cell.read())]
    text = tables.write_table(chosen, ["time"], found, failed, CONFIG, "b", tmp_path)
    assert "10.5 ± 0.7" in text and "5.0 ± 0.0" in text
    assert "it does not fit" in text and "it needs classes" in text
    assert "Missing: time, Broken, seed 0 (it failed" in text
    page = (tmp_path / "leaderboard.rst").read_text()
    assert "* Elsewhere on stream time: it needs classes" in page
    assert "     - 10.5 ± 0.7\n     - 5.0 ± 0.0\n     - 2\n" in page
    data = read_json(tmp_path / "all.json", dict, checksum=True)
    (best,) = [line for line in data["rows"] if line["method"] == "A"]
    assert best["score"] == {"mean": 10.5, "deviation": pytest.approx(0.5**0.5)}
    assert best["extra"]["mean"] == 1.0 and best["seeds"] == 2
    assert [c["figures"]["score"] for c in map(_found, data["cells"][:1])] == [10.0]
    assert data["cells"][0]["settings"]["name"] == "A"
    figures = read_json(tmp_path / "time" / "figures.json", dict, checksum=True)
    assert figures["methods"]["A"]["score"] == [10.0, 11.0]
    assert figures["facts"]["seeds"] == [0, 1] and list(figures["methods"]) == ["A"]
    (refused,) = [line for line in data["rows"] if line["method"] == "Refused"]
    assert refused["score"]["mean"] is None and refused["reason"] == "it does not fit"


def _found(cell):
    return {"figures": cell["figures"]}


def test_choose__best_candidate_is_used_by_the_table(
    study, made, tmp_path, monkeypatch
):
    grid = study.Row("A", candidates=({"lr": 1.0}, {"lr": 2.0}))
    monkeypatch.setattr(study, "search", _into(study.search, tmp_path))
    monkeypatch.setattr(study, "chosen", _into(study.chosen, tmp_path))
    monkeypatch.setattr(study, "search_table", _into(study.search_table, tmp_path))
    with pytest.raises(ValueError, match=r"choose them with --search"):
        study.with_settings(grid, "time", False)
    assert study.choose([grid], ["time"], tmp_path, CONFIG, "b") == {}
    assert made == ["time, A, seed 0"] * 2
    assert study.with_settings(grid, "time", False).settings == {"lr": 1.0}
    assert study.with_settings(grid, "time", True) is grid
    like = study.Row("Sum", settings={"lr": 9.0, "other": 3}, like=("A",))
    assert study.with_settings(like, "time", False).settings == {"lr": 1.0, "other": 3}
    busy = study.Row("Busy", candidates=({"lr": 1.0},))
    assert study.choose([busy], ["time"], tmp_path, CONFIG, "b")


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


def _streams():
    import importlib

    folder = str(ROOT / "experiments")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("leaderboard_streams")
    finally:
        sys.path.remove(folder)


def test_cell__in_a_process_of_its_own(study, tmp_path):
    row = study.Row("Sequential")
    cell = study.make_cell(tmp_path, CONFIG, "time", row, 0, "b")
    task = {"folder": str(cell.folder), "facts": cell.facts, "config": CONFIG}
    (cell.folder / "run").mkdir(parents=True)
    (cell.folder / "run" / "results.json").write_text("left by a killed process")
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "leaderboard.py"), "--cell"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = cell.read()
    assert found["cost"]["macs"] > 0 and found["cost"]["memory"] > 100
    assert found["cost"]["trainable"] > 10**6
    assert 0 <= found["figures"]["zero_shot"] <= 100
    assert not (cell.folder / "run" / "checkpoints").exists()
