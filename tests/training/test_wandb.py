"""Our metrics reach W&B in offline mode, through Avalanche's logger."""

import json
import os

import pytest
from avalanche.logging import WandBLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import Sequential
from tests.helpers import StubDualEncoder, stub_benchmark


@pytest.mark.slow
def test_wandb__offline_run_holds_our_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandBLogger(project_name="p", run_name="r", dir=str(tmp_path))
    model = StubDualEncoder()
    benchmark = stub_benchmark(model)
    strategy = Sequential(
        model=model,
        train_mb_size=4,
        evaluator=EvaluationPlugin(retrieval_plugin_metrics(), loggers=[logger]),
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    summary = dict(logger.wandb.run.summary)
    logger.wandb.finish()
    names = [n for n in summary if n.startswith("mean_R@1/eval_phase/test_stream")]
    assert names, json.dumps(sorted(map(str, summary)))[:500]
    assert all(0.0 <= float(summary[n]) <= 1.0 for n in names)
    stored = [f for _, _, files in os.walk(tmp_path) for f in files]
    assert any(name.endswith(".wandb") for name in stored)
