"""A whole run over languages: matrices, names, summaries, report."""

import json
import re

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    joint_languages,
    make_image_text_dataset,
    multilingual_benchmark,
    prepare_benchmark,
)
from avalanche_clip.evaluation.functional import (
    continual_summary,
    recall_forgetting,
    recall_forgetting_curves,
)
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.evaluation.report.page import write_report
from avalanche_clip.evaluation.report.results import Matrix, load_results, matrices
from avalanche_clip.training import run_stream
from avalanche_clip.training.supervised import Sequential
from tests.helpers import Pairs, build, quiet_evaluator, stub_model

LANGUAGES = ("en", "fi", "fil")


def data(codes, first_id, seed):
    """Pictures whose captions differ from language to language."""
    groups = np.asarray(codes) * 10 + np.arange(len(codes)) % 6
    return make_image_text_dataset(
        Pairs(groups, seed, 1),
        sample_ids=np.arange(first_id, first_id + len(codes)),
        languages=codes,
    )


def stream(model, **options):
    benchmark = multilingual_benchmark(
        data(np.repeat([0, 1, 2], 8), 0, 0),
        languages=[*LANGUAGES, "mi"],
        order=["en", "fil", "fi"],
        test=data(np.repeat([0, 1, 2], 6), 100, 1),
        far=data(np.repeat([0, 1, 2, 3], 6), 200, 2),
        others="test",
    )
    return prepare_benchmark(benchmark, model, **options)


def strategy(model):
    evaluator = quiet_evaluator([retrieval_plugin_metrics(ks=(1, 5))])
    return build(Sequential, model, evaluator=evaluator, seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = stub_model()
    out = tmp_path_factory.mktemp("run")
    found = run_stream(strategy(model), stream(model), out, streams=("test", "far"))
    return found, out


def test_matrices__have_one_column_per_language(run):
    result, out = run
    assert result.E.shape == (3, 3)
    assert result.matrix("mean_R@1", "far").shape == (3, 4)
    stored = json.loads((out / "results.json").read_text())
    assert stored["data"]["protocol"] == "multilingual"
    assert stored["data"]["labels"]["test"] == ["en", "fil", "fi"]
    assert stored["data"]["labels"]["far"] == ["en", "fil", "fi", "mi"]


def test_summary__holds_recall_and_forgetting(run):
    result, _ = run
    for metric in ("mean_R@1", "image_to_text_R@1", "text_to_image_R@5"):
        E = result.matrix(metric)
        values = recall_forgetting(E)
        summary = result.summary["test"][metric]
        assert summary["average_recall"] == values["average_recall"]
        assert summary["recall_forgetting"] == values["forgetting"]
        assert summary["first_task_forgetting"] == values["first_task_forgetting"]
        before = result.matrices["test"][metric]["before"]
        assert summary["forgetting"] == continual_summary(E, before)["forgetting"]
    far = result.matrix("mean_R@1", "far")
    assert result.summary["far"]["mean_R@1"]["average_recall"] == pytest.approx(
        far[2, :3].mean()
    )
    curve = recall_forgetting_curves(far)["average_recall"]
    assert curve[1] == pytest.approx(far[1, :2].mean())


def test_report__shows_each_language(run):
    _, out = run
    page = (out / "report.html").read_text()
    assert "Per language" in page and "recall forgetting" in page
    assert re.search(r"mean_R@1, average-recall", page)
    loaded = matrices(load_results(out))
    summary = loaded["test"]["mean_R@1"].summary()
    assert {"average_recall", "recall_forgetting", "in_domain"} <= set(summary)
    assert write_report(out).exists()


def test_metric_names__never_collide():
    model = stub_model()
    benchmark = stream(model)
    trained = strategy(model)
    seen = {}
    for name in ("test", "far"):
        values = trained.eval(benchmark.streams[name])
        mine = {k: v for k, v in values.items() if f"/{name}_stream/Task000/Exp" in k}
        assert not set(mine) & set(seen)
        seen |= mine
        per_language = [k for k in mine if k.startswith("mean_R@1/")]
        assert len(per_language) == len(benchmark.streams[name])
    # one language alone has the name that it has within its stream
    alone = trained.eval(benchmark.streams["test"][1])
    key = "mean_R@1/eval_phase/test_stream/Task000/Exp001"
    assert alone[key] == seen[key]


def test_joint_run__is_no_stream_of_languages(tmp_path):
    model = stub_model()
    joint = joint_languages(stream(model))
    result = run_stream(strategy(model), joint, tmp_path / "joint")
    assert result.E.shape == (1, 3)
    assert "average_recall" not in result.summary["test"]["mean_R@1"]
    assert result.summary["test"]["mean_R@1"]["final"] == result.E.mean()


def test_matrix__of_other_protocols_has_no_recall_summary():
    E = np.array([[0.5, 0.1], [0.4, 0.6]])
    labels = ["a", "b"]
    assert "average_recall" not in Matrix(E, None, labels).summary()
    assert "average_recall" in Matrix(E, None, labels, [], "multilingual").summary()
    wide = Matrix(E[:, :1], None, ["a"], [], "multilingual").summary()
    assert "average_recall" not in wide
