import csv
import json

import matplotlib.figure
import numpy as np
import pytest
import torch
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.loggers import COLUMNS, MetricsCSVLogger
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from tests.evaluation.helpers import FakeStrategy


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_times(path):
    return [tuple(row.values())[1:] for row in rows(path)]


def value(number, name="loss"):
    return MetricValue(None, name, number, 0)


def make_strategy(path):
    metrics = retrieval_plugin_metrics(ks=(1,), summary=("mean_R@1",))
    return FakeStrategy(EvaluationPlugin(metrics, loggers=[MetricsCSVLogger(path)]))


def run(strategy, start=0, stop=3):
    if start == 0:
        strategy.eval()
    for index in range(start, stop):
        strategy.train(index)
        strategy.eval()


def test_csv_logger__writes_long_rows_with_exact_values(tmp_path):
    path = tmp_path / "new" / "metrics.csv"
    logger = MetricsCSVLogger(path)
    logger.log_metrics([value(0.1 + 0.2), value(3, "steps"), value({"de": 0.5}, "R")])
    table = rows(path)
    assert tuple(table[0]) == COLUMNS
    assert [float(row["value"]) for row in table] == [0.1 + 0.2, 3, 0.5]
    assert [row["metric"] for row in table] == ["loss", "steps", "R/de"]
    assert {row["experience"] for row in table} == {"-1"}
    assert table[0]["time"].endswith("Z")


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])]
)
def test_csv_logger__number_types_become_plain_numbers(tmp_path, number):
    logger = MetricsCSVLogger(tmp_path / "m.csv")
    logger.log_metrics([value(number), value(AlternativeValues("text", number))])
    assert [row["value"] for row in rows(tmp_path / "m.csv")][0] == "0.5"


def test_csv_logger__leaves_other_values_to_other_loggers(tmp_path):
    logger = MetricsCSVLogger(tmp_path / "m.csv")
    others = [matplotlib.figure.Figure(), torch.zeros(2), np.zeros(2), "text", None]
    logger.log_metrics([value(other) for other in others])
    assert rows(tmp_path / "m.csv") == []


def test_csv_logger__experience_is_the_one_trained_last(tmp_path):
    strategy = make_strategy(tmp_path / "m.csv")
    run(strategy)
    table = rows(tmp_path / "m.csv")
    end = "/eval_phase/test_stream/Task000/Exp002"
    seen = [row["experience"] for row in table if row["metric"] == f"mean_R@1{end}"]
    assert seen == ["-1", "0", "1", "2"]


@pytest.mark.parametrize("cut", range(1, 24))
def test_csv_logger__a_half_written_line_is_cut_off(tmp_path, cut):
    path = tmp_path / "m.csv"
    logger = MetricsCSVLogger(path)
    logger.log_metrics([value(1.0), value(2.0)])
    path.write_bytes(path.read_bytes()[:-cut])
    again = MetricsCSVLogger(path)
    again.log_metrics([value(3.0)])
    assert [row["value"] for row in rows(path)] == ["1.0", "3.0"]


@pytest.mark.parametrize("content", [b"", b"time,exp"])
def test_csv_logger__an_empty_file_or_half_a_header_starts_anew(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    MetricsCSVLogger(tmp_path / "m.csv").log_metrics([value(1.0)])
    assert len(rows(tmp_path / "m.csv")) == 1


def test_csv_logger__another_file_is_not_touched(tmp_path):
    (tmp_path / "m.csv").write_text("something else\n1,2\n")
    with pytest.raises(ValueError, match="something else"):
        MetricsCSVLogger(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text() == "something else\n1,2\n"


def test_csv_logger__a_resumed_run_gives_the_file_of_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    run(make_strategy(whole))
    first = make_strategy(parts)
    run(first, stop=1)
    saved = json.loads(
        json.dumps(
            [
                first.evaluator.loggers[0].state_dict(),
                first.evaluator.metrics[1].state_dict(),
            ]
        )
    )
    clock = dict(vars(first.clock))
    first.train(1)  # goes on after the checkpoint and is killed inside a row
    with parts.open("ab") as file:
        file.write(b"2026-01-01T00:0")
    second = make_strategy(parts)
    second.evaluator.loggers[0].load_state_dict(saved[0])
    second.evaluator.metrics[1].load_state_dict(saved[1])
    vars(second.clock).update(clock)
    run(second, start=1)
    assert without_times(parts) == without_times(whole)


ODD = {
    "carriage return": "a\rb",
    "both": "a\r\nb",
    "only": "\r",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1eh",
    "quotes": 'say "a",\r"b"""',
    "commas": ",,a,",
    "line feed": 'a,"b"\nc',
    "spaces": "  a\t",
    "letters": "R@1/日本語/emoji \N{GRINNING FACE}",
    "half a pair": "a\ud800b",
    "nothing": "",
}


@pytest.mark.parametrize("kind", ODD)
def test_csv_logger__odd_names_lose_no_row(kind, tmp_path):
    name, path = ODD[kind], tmp_path / "m.csv"
    logger = MetricsCSVLogger(path)
    names = ["first", name, "b" + name, name, "last"]
    for number, given in enumerate(names):
        logger.log_single_metric(given, float(number))
    expected = [n.replace("\n", " ").replace("\ud800", "\\ud800") for n in names]
    assert [row["metric"] for row in rows(path)] == expected
    assert [row["value"] for row in rows(path)] == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    content = path.read_bytes()
    for keep in (4, 3, 2):
        again = MetricsCSVLogger(path)
        assert again.num_rows == keep + 1
        again.truncate_to(keep)
        assert [row["metric"] for row in rows(path)] == expected[:keep]
        state = json.loads(json.dumps(again.state_dict()))
        again.log_single_metric(name, 9.0)
        again.load_state_dict(state)
        assert path.read_bytes() == content[: path.stat().st_size]
        assert again.num_rows == len(rows(path)) == keep


def test_csv_logger__many_rows_are_stored_and_cut_exactly(tmp_path):
    path = tmp_path / "m.csv"
    logger, states = MetricsCSVLogger(path), []
    for number in range(3000):
        logger.log_single_metric("loss, of\rthe step", number / 7)
        if number % 700 == 0:
            states.append((logger.state_dict(), path.read_bytes()))
    assert len(states[-1][0]["rows"]) > 2
    for state, content in reversed(states):
        logger.load_state_dict(state)
        assert path.read_bytes() == content and logger.state_dict() == state


DAMAGES = {
    "lost": None,
    "empty": b"",
    "header": lambda content: b"x" + content[1:],
    "value": lambda content: content.replace(b"0.25", b"0.75"),
    "cut off": lambda content: content[:60],
    "page": b"<html>\n</html>\n",
    "no text": bytes(range(256)) * 3,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_csv_logger__a_damaged_file_is_written_again(damage, tmp_path, caplog):
    path = tmp_path / "m.csv"
    logger = MetricsCSVLogger(path)
    for number in (0.5, 0.25, 0.125):
        logger.log_single_metric("loss", number)
    state, content = logger.state_dict(), path.read_bytes()
    logger.log_single_metric("later", 1.0)
    change = DAMAGES[damage]
    found = change(path.read_bytes()) if callable(change) else change
    path.unlink()
    if found is not None:
        path.write_bytes(found)
    logger.load_state_dict(state)
    assert path.read_bytes() == content and logger.num_rows == 3
    assert "m.csv did not hold the rows" in caplog.text
    kept = tmp_path / "m.csv.damaged"
    if damage in ("lost", "empty", "cut off"):
        assert not kept.exists()
    else:
        assert kept.read_bytes() == found


def test_csv_logger__refuses_a_file_shorter_than_the_checkpoint(tmp_path):
    logger = MetricsCSVLogger(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="holds 0 rows, 5"):
        logger.truncate_to(5)
