import io
import re
import sys

import numpy as np
import pytest
from avalanche.logging import InteractiveLogger, TextLogger

from avalanche_clip.common import progress
from avalanche_clip.training.plugins import ProgressPlugin
from avalanche_clip.training.templates.clip_template import default_clip_evaluator
from tests.helpers import At, stub_benchmark
from tests.training.small_runs import Interrupted, evaluator, go

LINE = re.compile(
    r"(?P<method>[\w-]+), step (?P<step>\d)/3 \[step (?P<label>\d)\]: "
    r"loss (?P<loss>[\d.]+), mean_R@1 (?P<score>[\d.]+) % "
    r"\(before (?P<before>[\d.]+) %\), forgetting (?P<forgetting>–|-?[\d.]+ %), "
    r"[\d.]+ s, (?P<left>[\d.]+) s left(; report in (?P<report>.*))?"
)


def told(capsys, out, **options):
    """Lines of a run on standard output, and its result."""
    capsys.readouterr()
    strategy, result = go(out, **options)
    return strategy, result, capsys.readouterr()


def test_default__one_line_per_step(tmp_path, capsys):
    losses = []
    watch = At("after_training_iteration", lambda s: losses.append(s.loss.item()))
    printing = evaluator(loggers=[InteractiveLogger(), TextLogger()])
    loggers = printing.loggers
    strategy, result, (out, err) = told(
        capsys, tmp_path, evaluator=printing, extra=[watch]
    )
    lines = [LINE.fullmatch(line) for line in out.splitlines()]
    assert len(lines) == 3 and all(lines) and not err
    E, before = result.E, result.before
    for row, line in enumerate(lines):
        assert line["method"] == "Sequential"
        assert (line["step"], line["label"]) == (str(row + 1), str(row))
        assert float(line["score"]) == pytest.approx(100 * E[row].mean(), abs=0.051)
        assert float(line["before"]) == pytest.approx(100 * before.mean(), abs=0.051)
        mean = np.mean(losses[5 * row : 5 * row + 5])
        assert float(line["loss"]) == pytest.approx(mean, abs=1e-3)
    assert lines[0]["forgetting"] == "–"
    final = result.summary["test"]["mean_R@1"]["forgetting"]
    said = float(lines[2]["forgetting"].removesuffix(" %"))
    assert said == pytest.approx(100 * final, abs=0.051)
    assert lines[2]["left"] == "0.0" and lines[0]["report"] is None
    assert lines[2]["report"] == str(tmp_path / "report.html")
    # What prints is only quiet during the run.
    assert strategy.evaluator.loggers is loggers
    capsys.readouterr()
    strategy.eval(stub_benchmark(model=strategy.model).streams["test"][0])
    assert "> Eval on experience 0" in capsys.readouterr().out


def test_verbose_0__silent_and_2__what_loggers_print(tmp_path, capsys):
    for verbose in (0, 2):
        log = default_clip_evaluator()
        options = {"evaluator": log, "extra": [ProgressPlugin()]}
        run = {"verbose": verbose}
        _, result, (out, err) = told(
            capsys, tmp_path / str(verbose), run=run, **options
        )
        if verbose == 0:
            assert (out, err) == ("", "")
            first = result.E
        else:
            assert "image_to_text_R@1/eval_phase/test_stream" in out
            assert "step 1/3" not in out and "train [step 0]" in err
    np.testing.assert_array_equal(result.E, first)


@pytest.mark.parametrize("verbose", [3, -1, True, 1.0, "1", None])
def test_verbose__other_values_are_refused(verbose, tmp_path):
    with pytest.raises(ValueError, match=f"verbose={verbose!r}"):
        go(tmp_path / "run", run={"verbose": verbose})
    assert not (tmp_path / "run").exists()


def test_loggers_that_write_files_go_on(tmp_path, capsys):
    file = io.StringIO()
    told(capsys, tmp_path, evaluator=evaluator(loggers=[TextLogger(file)]))
    assert "mean_R@1/eval_phase/test_stream" in file.getvalue()


def test_resumed__the_lines_that_are_left(tmp_path, capsys):
    whole = told(capsys, tmp_path / "whole")[2].out.splitlines()
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", stop={"train": 9})
    assert len(capsys.readouterr().out.splitlines()) == 1
    _, _, (out, _) = told(capsys, tmp_path / "cut", resume=True)
    rest = [LINE.fullmatch(line) for line in out.splitlines()]
    for line, same in zip(rest, map(LINE.fullmatch, whole[1:]), strict=True):
        for key in ("step", "score", "before", "forgetting"):
            assert line[key] == same[key]
    # nothing is left to be said of a finished run
    assert told(capsys, tmp_path / "cut", resume=True)[2].out == ""


def test_rows_at_some_steps__one_line_each(tmp_path, capsys):
    run = {"evaluate_at": [1], "streams": ("test",)}
    out = told(capsys, tmp_path, run=run)[2].out
    assert re.findall(r"step (\d)/3", out) == ["2", "3"]
    assert re.findall(r"forgetting (\S+)", out)[0] == "–,"


def test_joint__one_line(tmp_path, capsys):
    out = told(capsys, tmp_path, method="Joint")[2].out
    (line,) = out.splitlines()
    assert line.startswith("Joint, step 1/1 [") and "forgetting –" in line


def test_bars__of_training_and_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(progress.bar.__kwdefaults__, "delay", 0.0)
    monkeypatch.setattr("avalanche_clip.training.runs.progress.DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVALS", (0.0, 0.0))
    _, _, (out, err) = told(capsys, tmp_path / "own")
    assert len(out.splitlines()) == 3
    assert "train [step 2]: 100%" in err and "5/5" in err
    assert "evaluating before the stream" in err and "/18 " in err
    # a bar of the user's is not shown twice
    file = io.StringIO()
    plugin = ProgressPlugin(file, "mine")
    _, _, (_, err) = told(capsys, tmp_path / "mine", extra=[plugin])
    assert "train [step" not in err and "mine [step 2]: 100%" in file.getvalue()


def test_failed__leaves_no_bar_and_no_logger(tmp_path, capsys):
    printing = evaluator(loggers=[TextLogger(sys.stdout)])
    before = list(printing.loggers)
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 3}, evaluator=printing)
    assert printing.loggers == before
