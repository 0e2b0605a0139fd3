"""Reference distillation over experiences: teachers, caches, accounts, resuming."""

import pytest
import torch

from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import CheckpointPlugin
from avalanche_clip.training.runs.resume import load_state
from avalanche_clip.training.templates.reference_data import ReferenceImages
from tests.benchmarks.small_streams import Noise
from tests.helpers import (
    fit,
    sgd,
    train_stream,
)
from tests.training import small_runs as runs
from tests.training.methods.zscl.test_distillation import (
    TEXTS,
    Note,
    plugin,
    reference_images,
)


@pytest.mark.parametrize("kind", ["initial", "previous"])
def test_cache__gives_the_same_losses_as_recomputation(kind):
    found = []
    for size in (2**20, 5 * 8 * 4, 0):
        images = ReferenceImages(reference_images(), cache_bytes=size)
        note = Note()
        method = plugin(images, teacher=kind)
        strategy = fit(Sequential, steps=2, plugins=[method, note], optimizer=sgd)
        accounts = strategy.compute.experiences
        spent = [e.get("teacher", {"images": 0})["images"] for e in accounts]
        found.append(([r["reference_image"] for r in note.terms], spent))
    torch.testing.assert_close(found[0][0], found[2][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][0], found[2][0], rtol=1e-6, atol=1e-6)
    assert found[0][1] == ([10, 0] if kind == "initial" else [10, 10])
    assert found[2][1] == [20, 20]
    assert found[0][1] < found[1][1] < found[2][1]


def test_cache__random_transforms_are_not_kept():
    images = ReferenceImages(reference_images(), transform=Noise())
    strategy = fit(Sequential, steps=2, plugins=[plugin(images)])
    assert strategy.compute.experiences[1]["teacher"]["images"] == 20


def test_cost__sentences_are_encoded_once():
    strategy = fit(Sequential, steps=2, plugins=[plugin()])
    first, second = strategy.compute.experiences
    assert first["teacher"] == {"images": 10, "texts": 7, "steps": 0}
    assert "teacher" not in second
    assert first["reference"] == {"images": 20, "texts": 0, "steps": 0}
    macs = strategy.compute.report({"image": 10.0, "text": 1.0})
    train = 2 * 20 * 11.0
    assert macs["total_macs"] == train + 107 + 400
    assert macs["full_macs"] == 3 * train + 107 + 3 * 400


def resumable(extra=(), texts=TEXTS, size=11):
    images = ReferenceImages(reference_images(size))
    return runs.build(extra=[plugin(images, texts), *extra])


def test_resume__with_other_reference_data_raises(tmp_path):
    every = CheckpointPlugin(tmp_path, every_iterations=3, keep=9)
    full, benchmark = resumable([every])
    train_stream(full, benchmark, 1)
    path = tmp_path / "state_000000005_end.pt"
    later, benchmark = resumable(size=12)
    with pytest.raises(CheckpointError, match="11 reference images"):
        load_state(later, path, benchmark)
    later, benchmark = resumable(texts=["ab", "cd"])
    load_state(later, path, benchmark)
    with pytest.raises(ValueError, match="other reference texts"):
        later.train(benchmark.train_stream[1], eval_streams=[])
