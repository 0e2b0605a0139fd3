"""Reference distillation in two gloo processes against one process."""

from functools import partial

import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.templates.reference_data import ReferenceImages
from tests.helpers import (
    assert_same_weights,
    build,
    sgd,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import run_in_processes
from tests.training.methods.zscl.test_distillation import (
    TEXTS,
    Note,
    plugin,
    reference_images,
)

CASES = {
    "shared": {},
    "not divisible": {"batch_size": 5},
    "student": {"text_side": "student"},
    "student, not divisible": {"text_side": "student", "batch_size": 3},
    "previous": {"teacher": "previous"},
    "small cache": {"cache_bytes": 5 * 8 * 4},
    "current": {"images": "current", "texts": "current", "teacher": "previous"},
    "accumulation": {"accumulation_steps": 2},
    "scale": {"train_logit_scale": True},
    "zscl": {"zscl": True},
}


def small_run(case, batch):
    options = dict(CASES[case])
    whole = options.pop("zscl", False)
    chunks = options.pop("accumulation_steps", 1)
    size = options.pop("cache_bytes", 2**20)
    images = options.pop("images", None)
    images = images or ReferenceImages(reference_images(11), cache_bytes=size)
    plugins = [plugin(images, options.pop("texts", TEXTS), **options)]
    if whole:
        plugins += [WeightConsolidationPlugin(0.3), WeightAveragingPlugin(interval=2)]
    model = stub_model()
    note = Note()
    strategy = build(
        Sequential,
        model,
        plugins=[*plugins, note],
        optimizer=sgd,
        train_mb_size=batch,
        accumulation_steps=chunks,
        budget_iterations=3,
    )
    train_stream(strategy, stub_benchmark((16, 16), model=model))
    return {"weights": weights(model), "terms": note.terms}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all cases in one go."""
    jobs = {case: partial(small_run, case, 4) for case in CASES}
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    first, second = pool[case]
    whole = small_run(case, 8)
    assert_same_weights(first["weights"], second["weights"])
    assert first["terms"] == second["terms"]
    for ours, expected in zip(first["terms"], whole["terms"], strict=True):
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name, value in whole["weights"].items():
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )
