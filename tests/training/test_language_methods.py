"""CLL-CLIP's baselines on emoji in three languages, from stored features."""

from unittest import mock

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    attach_teacher_features,
    multilingual_emoji,
    precompute_teacher_features,
    prepare_benchmark,
)
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import CLLCLIP, run_stream
from avalanche_clip.training.plugins import (
    LanguageAdapterPlugin,
    ReservoirReplayPlugin,
)
from tests.helpers import quiet_evaluator

EMOJI = np.arange(40)
METHODS = {
    "DER": lambda: [ReservoirReplayPlugin(30, target="student")],
    "LoRA": lambda: [LanguageAdapterPlugin("lora")],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Make the store once; return a function that gives model and benchmark."""
    path = tmp_path_factory.mktemp("store") / "features"
    plain = multilingual_emoji(["en", "it", "mi"], emoji=EMOJI)

    def make():
        model = create_dual_encoder("tiny-emoji-vit", "emoji-2010")
        store = precompute_teacher_features(model, plain.teacher_source, path)
        benchmark = attach_teacher_features(plain, store, images=False)
        benchmark = attach_teacher_features(
            benchmark, store, streams=["test"], kinds=["image"], images=False
        )
        return model, prepare_benchmark(benchmark, model)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_method__runs_without_any_tower_of_the_teacher(prepared, tmp_path, method):
    model, benchmark = prepared()
    metrics = retrieval_plugin_metrics(ks=(1, 5))
    strategy = CLLCLIP(
        model=model,
        vocab_size=400,
        plugins=METHODS[method](),
        train_mb_size=16,
        budget_iterations=4,
        train_epochs=1,
        evaluator=quiet_evaluator([metrics]),
        seed=0,
    )
    frozen = {
        n: p.detach().clone()
        for n, p in model.named_parameters()
        if n.startswith("clip.visual")
    }
    no_images = mock.patch.object(
        type(model), "encode_image", side_effect=AssertionError("an image was encoded")
    )
    # Counting multiply-adds runs each tower once.
    costs = mock.patch.object(
        type(model), "macs", return_value={"image": 10, "text": 10}
    )
    report = mock.patch("avalanche_clip.training.runs.stream.write_report")
    with no_images, costs, report:
        result = run_stream(strategy, benchmark, tmp_path / "run")
    assert result.E.shape == (3, 3) and np.isfinite(result.E).all()
    assert result.results["data"]["labels"]["test"] == ["en", "it", "mi"]
    assert "average_recall" in result.summary["test"]["mean_R@1"]
    assert all(
        torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen
    )
    if method == "LoRA":
        assert model.language_adapters.codes == (0, 1, 13)
        assert model.language_adapters.ids == {"text": -1}
