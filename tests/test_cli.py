"""The command line: models, suites, tables, resuming, refusals."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_clip import cli
from avalanche_clip.evaluation.suites import ZeroShotSuite
from avalanche_clip.evaluation.suites.suite import Suite
from avalanche_clip.models import create_dual_encoder
from tests.evaluation.results import make_results
from tests.training.runs.test_models import trained

BASE = "tiny-emoji:emoji-2010"
TASKS = ["--tasks", "emoji-2020-2024,emoji-2018-2019"]


def run(capsys, *words):
    """Exit code, and what was written to both streams."""
    code = cli.main(["evaluate", *map(str, words)])
    return code, *capsys.readouterr()


@pytest.fixture
def counted(monkeypatch):
    """Names of the tasks that were computed."""
    calls, evaluate = [], ZeroShotSuite.evaluate

    def counting(suite, model, **options):
        calls.extend(task.name for task in suite.tasks)
        return evaluate(suite, model, **options)

    monkeypatch.setattr(ZeroShotSuite, "evaluate", counting)
    return calls


def test_evaluate__values_are_those_of_the_suite(tmp_path, capsys, counted):
    out = ["--out", tmp_path]
    code, text, progress = run(capsys, BASE, "--suite", "zero-shot", *TASKS, *out)
    assert code == 0 and "2/2" in progress
    names = TASKS[1].split(",")
    assert counted == names
    model = create_dual_encoder(*BASE.split(":")).eval()
    wanted = ZeroShotSuite(names).evaluate(model)
    for line, (task, values) in zip(text.splitlines(), wanted.items(), strict=True):
        shown = f"{100 * values['acc1']:.1f} ({100 * values['acc1_low']:.1f}-"
        assert line.split()[:4] == [BASE, "zero-shot", task, "acc1"] and shown in line
    stored = json.loads((tmp_path / "results.json").read_text())
    listed = stored["suites"]["zero-shot"]
    found = {(row["task"], row["metric"]): row["value"] for row in listed}
    with open(tmp_path / "zero-shot.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found)
    for row in rows:
        value = wanted[row["task"]][row["metric"]]
        assert found[row["task"], row["metric"]] == float(row["value"]) == value
        assert row["checkpoint"] == BASE


def test_evaluate__what_is_there_is_not_computed_again(tmp_path, capsys, counted):
    words = ("--suite", "zero-shot", "--out", tmp_path, "--json")
    one = run(capsys, BASE, *words, *TASKS)[1]
    more = ["--tasks", f"{TASKS[1]},emoji-2014"]
    counted.clear()
    assert run(capsys, BASE, *words, *TASKS)[1] == one and not counted
    json.loads(run(capsys, BASE, *words, *more)[1])
    assert counted == ["emoji-2014"]
    # Another model, or other data under the same name, has no values yet.
    run(capsys, "tiny-emoji:icons", *words, *more)
    assert len(counted) == 4
    path = tmp_path / "values.json"
    path.write_text(path.read_text().replace("0", "1", 1))
    code, _, said = run(capsys, BASE, *words, *more)
    assert code == 2 and "delete it, and evaluate again" in said
    assert said.splitlines()[-1].startswith("error: ")


def test_evaluate__every_kept_step_of_a_run(tmp_path, capsys):
    strategy = trained(tmp_path / "run", inside=1)
    strategy.model.save(tmp_path / "model")
    file = next((tmp_path / "model").glob("*.safetensors"))
    words = ["--suite", "zero-shot", "--tasks", "emoji-2020-2024", "--json"]
    models = [tmp_path / "run", tmp_path / "model", file]
    rows = json.loads(run(capsys, *models, *words)[1])["suites"]["zero-shot"]
    values = {r["checkpoint"]: r["value"] for r in rows if r["metric"] == "acc1"}
    run_name = str(tmp_path / "run")
    steps = [f"{run_name} before", f"{run_name} 0", f"{run_name} 1"]
    assert list(values) == [*steps, *map(str, models[1:])]
    last = values[steps[-1]]
    assert last == values[str(models[1])] == values[str(file)]


class Nothing(Suite):
    """Has a value that is no number."""

    def identity(self):
        return {}

    def evaluate(self, model, *, device="cpu", autocast=None):
        return {"none": {"acc1": math.nan, "count": 0}}


def test_evaluate__missing_data_and_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli.SUITES, "nothing", lambda data, tasks: Nothing("nothing"))
    words = [BASE, "--suite", "nothing,zero-shot", "--tasks", "cifar10", "--json"]
    for _ in range(2):
        code, text, said = run(capsys, *words, "--out", tmp_path)
        found = json.loads(text)
        (row,) = found["suites"]["nothing"]
        assert code == 0 and row["value"] is None and row["count"] == 0
        assert "wds_cifar10_test" in found["missing"]["zero-shot"]["cifar10"]
        assert "missing: zero-shot, cifar10: " in said
    assert "none  acc1  –" in run(capsys, BASE, "--suite", "nothing")[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["tiny-emoji", "--suite", "blind-emoji"], "as a name it has no weights"),
        (["tiny-emoji:x", "--suite", "blind-emoji"], "pretrained='x' is unknown"),
        (["/nowhere/run", "--suite", "blind-emoji"], "is no file or folder"),
        ([BASE, "--suite", "mmvp-vlm"], "mmvp-vlm needs --data"),
        (
            [BASE, "--suite", "mirb", "--data", "/nowhere"],
            "the folder with MIRB's JSON files",
        ),
        ([BASE, "--suite", "blind-emoji", *TASKS], "--tasks is for zero-shot"),
        ([BASE, "--suite", "blind-emoji", "--data", "."], "has no effect on blind-em"),
        ([BASE, "--suite", "zero-shot", "--tasks", "cifar"], "Did you mean 'cifar10'"),
    ],
)
def test_evaluate__refusals_are_one_line(words, message, capsys):
    code, text, said = run(capsys, *words)
    last = said.rstrip("\n").splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and message in last and not text


def test_evaluate__fails_if_nothing_could_be_scored(capsys):
    words = [BASE, "--suite", "zero-shot", "--tasks", "cifar10", "--json"]
    code, text, said = run(capsys, *words)
    assert code == 2 and "cifar10" in json.loads(text)["missing"]["zero-shot"]
    assert said.rstrip().endswith(
        "error: Nothing was scored: all data sets are missing."
    )


def test_evaluate__unknown_suites(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, BASE, "--suite", "zero-sot")
    assert stopped.value.code == 2
    assert "Did you mean 'zero-shot'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(capsys, BASE, "--suite", "blind-emoji", "--out", "")
    assert "give the name of a folder" in capsys.readouterr().err


def test_main__help_is_there_at_once():
    words = ["-X", "importtime", "-m", "avalanche_clip", "evaluate", "-h"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    found = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0 and "tiny-emoji:icons" in found.stdout
    assert "avalanche_clip.cli" in found.stderr and "torch" not in found.stderr


def test_evaluate__tasks_of_no_name_are_no_default(capsys):
    assert (
        cli.main(["evaluate", "tiny-emoji:icons", "--suite=zero-shot", "--tasks="]) == 2
    )
    assert "tasks [''] are unknown" in capsys.readouterr().err


@pytest.fixture
def folders(tmp_path):
    """Results of two methods, the second with two seeds below one folder."""
    for name, seed in (("a", 0), ("b/seed_0", 0), ("b/seed_1", 1)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(make_results("M", seed)))
    return tmp_path


def command(capsys, *words):
    code = cli.main([*map(str, words)])
    return code, *capsys.readouterr()


def test_report__is_written_anew(folders, capsys):
    page = folders / "a" / "report.html"
    assert command(capsys, "report", folders / "a") == (0, f"{page}\n", "")
    assert "rose from" in page.read_text() or "fell from" in page.read_text()
    code, text, said = command(capsys, "report", folders)
    assert code == 2 and "results.json" in said and not text


def test_compare__names_are_those_of_the_methods(folders, capsys, monkeypatch):
    here = folders / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    words = [folders / "a", folders / "b", "--names", "first one, other"]
    assert command(capsys, "compare", *words) == (0, "comparison.html\n", "")
    stored = json.loads((here / "comparison.json").read_text())["test"]["mean_R@1"]
    assert list(stored) == ["first one", "other"]
    assert [len(row["final"]["runs"]) for row in stored.values()] == [1, 2]
    out = folders / "new" / "folder"
    code, text, _ = command(capsys, "compare", *words, "--out", out)
    assert code == 0 and text == f"{out / 'comparison.html'}\n"
    assert (out / "comparison.html").exists()


@pytest.mark.parametrize(
    "names, message",
    [("x", "1 names for 2 folders"), ("x,y,z", "3 names"), ("x,", "1 names")],
)
def test_compare__names_that_do_not_fit(folders, capsys, names, message):
    words = ["compare", folders / "a", folders / "b", "--names", names]
    code, text, said = command(capsys, *words, "--out", folders / "out")
    assert code == 2 and message in said and not text
    assert not (folders / "out").exists()


def test_compare__refusals_are_one_line(folders, capsys):
    pairs = ((folders / "nothing", "nothing"), (folders / "a", "pass runs once"))
    for other, message in pairs:
        words = ["compare", folders / "a", other, "--out", folders]
        code, text, said = command(capsys, *words)
        assert code == 2 and message in said and said.count("\n") == 1 and not text
