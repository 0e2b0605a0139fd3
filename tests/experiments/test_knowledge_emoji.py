"""The study of what stays known over a run: suites, figures, command."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

STUDY = "knowledge_emoji"


def fake_result(study, seed, steps=6):
    """Values by place: figure k of evaluation n is (k + n + seed) / 20."""
    suites = {}
    for k, (suite, task, metric) in enumerate(study.FIGURES.values()):
        rows = suites.setdefault(suite, {})
        for n, row in enumerate(["before", *map(str, range(steps))]):
            rows.setdefault(row, {}).setdefault(task, {})[metric] = (k + n + seed) / 20
    levels = {"in_domain": 0.5, "backward": 0.25, "forward": 0.125}
    return SimpleNamespace(
        before=np.full(steps, 0.1),
        E=np.tile(np.arange(steps)[:, None] / 10, (1, steps)),
        summary={"test": {"mean_R@1": levels}},
        results={"suites": suites},
        out_dir=f"seed {seed}",
    )


def test_make_suites__have_what_is_shown(study):
    suites = {suite.name: suite for suite in study.make_suites()}
    assert {suite for suite, _, _ in study.FIGURES.values()} == set(suites)
    tasks = {task.name for task in suites["zero-shot"].tasks}
    shown = {t for suite, t, _ in study.FIGURES.values() if suite == "zero-shot"}
    assert shown <= tasks
    again = {suite.name: suite for suite in study.make_suites()}
    assert again["blind-pairs"] is not suites["blind-pairs"]


def test_line_and_base__by_hand(study):
    result = fake_result(study, seed=0)
    line, base = study.line_of(result), study.base_of(result)
    wanted = {"in_domain": 50, "backward": 25, "forward": 12.5, "all steps": 50}
    wanted |= {"names, 2010": 30, "several images": 50, "born": 12 / 20}
    assert {name: line[name] for name in wanted} == pytest.approx(wanted)
    assert list(base) == list(line) and math.isnan(base["forward"])
    wanted = {"all steps": 10, "names, 2010": 0, "held-out icons": 10, "born": 6 / 20}
    assert {name: base[name] for name in wanted} == pytest.approx(wanted)
    curve = study.curves(result)["healed"]
    assert curve == pytest.approx([(7 + n) / 20 for n in range(7)])


def test_main__tables_and_plots_over_seeds(study, tmp_path, monkeypatch, capsys):
    calls = []

    def run(config, method, folder, *, suites):
        calls.append((method, config.seed, config.lr, len(suites)))
        return fake_result(study, config.seed)

    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study, "make_suites", lambda: ["one"])
    place = "avalanche_clip.evaluation.report.comparison.write_comparison"
    monkeypatch.setattr(place, lambda out, folders: "comparison.html")
    study.main(["--seeds", "0,1", "--out", str(tmp_path)])
    assert {call[:2] for call in calls} == {
        (m, s) for m in study.METHODS for s in (0, 1)
    }
    assert {call[2:] for call in calls} == {(3e-4, 1)}
    stored = json.loads((tmp_path / "figures.json").read_text())["methods"]
    assert list(stored) == ["base", *study.METHODS]
    assert stored["mod-x"]["blind pairs"] == pytest.approx([11 / 20, 12 / 20])
    assert (tmp_path / "knowledge.png").stat().st_size > 1000
    assert "several images" in capsys.readouterr().out


@pytest.mark.slow
def test_main__a_whole_run_and_again(study, tmp_path, monkeypatch, with_report):
    short = replace(study.DEMO_CONFIG, iterations=1, warmup=0)
    monkeypatch.setattr(study, "DEMO_CONFIG", short)
    words = ["--methods", "mod-x", "--out", str(tmp_path)]
    study.main(words)
    first = (tmp_path / "figures.json").read_text()
    study.main(words)
    assert (tmp_path / "figures.json").read_text() == first
    assert "Suite “blind-pairs”" in (tmp_path / "mod-x/seed_0/report.html").read_text()
