"""Models of the checkpoints that a run has kept."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic import emoji_dataset
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import CheckpointPlugin, LoRAPlugin
from avalanche_clip.training.runs.files import CheckpointError
from avalanche_clip.training.runs.models import kept_steps, load_kept
from tests.helpers import assert_same_weights, quiet_evaluator


def trained(folder, plugins=(), frozen=None, preset="tiny-emoji", inside=None):
    """A strategy that was trained for two steps, and kept all."""
    model = create_dual_encoder(preset, "emoji-2010")
    if frozen:
        model.freeze(frozen)
    parts = [emoji_dataset(("noto",), np.arange(n, n + 4)) for n in (0, 4)]
    benchmark = prepare_benchmark(benchmark_from_datasets(train=parts), model)
    keep = CheckpointPlugin(folder / "checkpoints", keep=9, every_iterations=inside)
    strategy = Sequential(
        model=model,
        train_mb_size=4,
        budget_iterations=2,
        plugins=[*plugins, keep],
        evaluator=quiet_evaluator(),
    )
    keep.save(strategy, "_eval")
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("frozen", [None, "image"])
def test_kept_steps__are_the_models_after_them(frozen, tmp_path):
    strategy = trained(tmp_path, frozen=frozen, inside=1)
    kept = kept_steps(tmp_path)
    assert list(kept) == ["before", "0", "1"]
    assert kept == kept_steps(tmp_path / "checkpoints")
    assert_same_weights(load_kept(kept["1"]), strategy.model)
    start = create_dual_encoder("tiny-emoji", "emoji-2010")
    assert_same_weights(load_kept(kept["before"]), start)
    middle = load_kept(kept["0"])
    states = {m.state_fingerprint() for m in (start, middle, strategy.model)}
    assert len(states) == 3
    image = torch.rand(2, 3, 48, 48)
    middle.eval(), start.eval()
    same = torch.equal(middle.encode_image(image), start.encode_image(image))
    assert same == (frozen == "image")


def test_kept_steps__of_other_folders(tmp_path):
    assert kept_steps(tmp_path) == {} == kept_steps(tmp_path / "none")
    trained(tmp_path, inside=1)
    for path in (tmp_path / "checkpoints").glob("*_e*.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint between steps"):
        kept_steps(tmp_path)


def test_load_kept__what_a_plugin_attaches_is_refused(tmp_path):
    trained(tmp_path, [LoRAPlugin(True, rank=2)], preset="tiny-emoji-vit")
    with pytest.raises(CheckpointError, match=r"parts that grew \(lora\)"):
        load_kept(kept_steps(tmp_path)["1"])
