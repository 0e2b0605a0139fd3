"""Whole runs on class names: refusals, parts of batches, results."""

import json
import warnings
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import (
    incremental_accuracy,
    seen_unseen_harmonic,
    transfer_average_last,
)
from avalanche_clip.training import run_stream
from avalanche_clip.training.templates.class_scoring import PromptBatch
from tests.helpers import (
    At,
    stub_model,
    train_stream,
)
from tests.training import small_runs as runs
from tests.training.classes import class_benchmark, class_strategy, domain_benchmark

pytestmark = pytest.mark.filterwarnings("ignore")


# ----------------------------------------------------------------------- resume
def go(out, stop=None, resume=False, *, plugins=(), **options):
    torch.manual_seed(0 if stop is None else 99)
    model = stub_model(dropout=0.2, noise=0.1)
    benchmark = domain_benchmark(model)
    made = [plugin() for plugin in plugins]
    strategy = class_strategy(
        model, plugins=[*made, runs.StopPlugin(**(stop or {}))], **options
    )
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        result = run_stream(
            strategy, benchmark, out, resume=resume, checkpoint_iterations=2
        )
    return strategy, result


def test_resume__other_label_spaces_are_another_run(tmp_path):
    with pytest.raises(runs.Interrupted):
        go(tmp_path, {"train": 8})
    with pytest.raises(ValueError, match="label_smoothing"):
        go(tmp_path, resume=True, label_smoothing=0.1)
    with pytest.raises(ValueError, match="eval_label_space"):
        go(tmp_path, resume=True, eval_label_space="all")


# ------------------------------------------------------------------ accumulation
def test_prompt_batch__parts_share_out_images_and_prompts():
    batch = PromptBatch(
        image=torch.arange(5.0).view(5, 1, 1, 1),
        text=torch.arange(3).view(3, 1),
        targets=torch.arange(5),
    )
    parts = batch.split(2)
    assert [len(p) for p in parts] == [2, 3]
    assert [p["text"].flatten().tolist() for p in parts] == [[0], [1, 2]]
    parts = batch.split(5)
    assert [p.prompts for p in parts] == [0, 1, 0, 1, 1]
    assert [p["text"].flatten().tolist() for p in parts] == [[0], [0], [0], [1], [2]]
    assert torch.cat([p["targets"] for p in parts]).tolist() == [0, 1, 2, 3, 4]
    assert parts[-1].prompts == 1 and parts[0].to("cpu")["text"].shape == (1, 1)


def test_budget__counts_prompts_and_plans_macs_with_them():
    model = stub_model()
    strategy = class_strategy(model, train_mb_size=6)
    train_stream(strategy, domain_benchmark(model))
    report = strategy.compute.report(model.macs())
    image, text = model.macs()["image"], model.macs()["text"]
    assert report["macs"] == [{"train": 5 * (6 * image + c * text)} for c in (3, 4, 2)]
    macs = 4 * (6 * image + 3 * text)
    model = stub_model()
    strategy = class_strategy(
        model, train_mb_size=6, budget_iterations=None, budget_macs=macs
    )
    train_stream(strategy, domain_benchmark(model), 1)
    assert strategy.clock.train_iterations == 4


# ------------------------------------------------------------------------ results
def test_run_stream__multi_domain_results_and_report(tmp_path, with_report):
    model = stub_model()
    benchmark = domain_benchmark(model, order=[2, 0, 1])
    strategy = class_strategy(model, eval_label_space="all")
    result = run_stream(strategy, benchmark, tmp_path)
    metric = "Top1_Acc_Exp"
    E = result.matrix(metric)
    assert E.shape == (3, 3) and result.E is E
    assert result.before.shape == (3,) and not np.isnan(E).any()
    summary = result.summary["test"][metric]
    for values in (transfer_average_last(E), seen_unseen_harmonic(E)):
        assert values.items() <= summary.items()
    assert {"backward", "forgetting", "final"} <= set(summary)
    assert "Loss_Exp" not in result.summary["test"]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["data"]["protocol"] == "multi_domain"
    assert content["data"]["labels"]["test"] == ["domain-2", "domain-0", "domain-1"]
    assert content["config"]["label_space"] == "current"
    page = (tmp_path / "report.html").read_text()
    for word in (
        "Per data set",
        "domain-2",
        "transfer",
        "harmonic",
        "before the stream",
    ):
        assert word in page
    assert (tmp_path / "matrix_test_Top1_Acc_Exp.png").exists()


def test_run_stream__class_incremental_results(tmp_path, with_report):
    model = stub_model()
    benchmark = class_benchmark(model, increment=4)  # steps of 4 and 2 classes
    strategy = class_strategy(model, eval_label_space="seen")
    result = run_stream(strategy, benchmark, tmp_path)
    expected = incremental_accuracy(result.E, [12, 6])
    summary = result.summary["test"]["Top1_Acc_Exp"]
    assert summary["incremental_last"] == expected["last"]
    assert summary["incremental_average"] == expected["average"]
    assert "transfer" not in summary
    assert "incremental last" in (tmp_path / "report.html").read_text()


def test_data_hash__knows_class_names_and_templates():
    from avalanche_clip.benchmarks import multi_domain_benchmark
    from avalanche_clip.benchmarks.items.content import data_summary
    from tests.training.classes import domains

    given = domains((3, 2))
    other = [given[0], (*given[1][:3], "other {}", given[1][4])]
    hashes = [data_summary(multi_domain_benchmark(d))["hash"] for d in (given, other)]
    assert hashes[0] != hashes[1]


def test_run_stream__own_classes_have_no_incremental_accuracy(tmp_path, with_report):
    model = stub_model()
    strategy = class_strategy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run_stream(strategy, class_benchmark(model), tmp_path)
    summary = result.summary["test"]["Top1_Acc_Exp"]
    assert not [key for key in summary if key.startswith("incremental")]
    assert "incremental average" not in (tmp_path / "report.html").read_text()
    told = [w for w in caught if "eval_label_space='seen'" in str(w.message)]
    assert len(told) == 1


@pytest.mark.parametrize("kind", ["domains", "seen"])
def test_eval_space__no_warning_where_it_fits(kind):
    model = stub_model()
    make = domain_benchmark if kind == "domains" else class_benchmark
    strategy = class_strategy(
        model, eval_label_space="seen" if kind == "seen" else None
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy.eval(make(model).test_stream)
    assert not [w for w in caught if "eval_label_space" in str(w.message)]


def test_run_stream__counts_parameters_per_experience(tmp_path):
    def freeze(strategy):
        if strategy.experience_index == 1:
            strategy.model.image_proj.requires_grad_(False)

    plugins = (partial(At, "before_train_dataset_adaptation", freeze),)
    whole, _ = go(tmp_path / "whole", plugins=plugins)
    sizes = {n: p.numel() for n, p in whole.model.named_parameters()}
    every = sum(sizes.values())
    frozen = sum(n for name, n in sizes.items() if name.startswith("image_proj"))
    expected = [{"all": every, "trainable": every}]
    expected += [{"all": every, "trainable": every - frozen}] * 2
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert found["parameters"] == expected and frozen > 0
    with pytest.raises(runs.Interrupted):
        go(tmp_path / "cut", {"train": 8}, plugins=plugins)
    _, resumed = go(tmp_path / "cut", resume=True, plugins=plugins)
    assert resumed.results["parameters"] == expected
