"""What runs note for their reports, and disks that are too small."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.common.space import NoSpaceError, require_space
from avalanche_clip.evaluation.functional.retrieval import guessed_recalls
from avalanche_clip.training import run_stream
from tests.helpers import stub_benchmark, stub_model
from tests.training.classes import class_benchmark, class_strategy
from tests.training.small_runs import Interrupted, build, first_steps, go

PARTS = ("losses", "chance", "examples")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a second term of the loss."""
    return go(tmp_path_factory.mktemp("whole"), "ContrastiveLwF")[1]


def hits(result, stream, place):
    """Share of hits among the examples of a test set, by row."""
    items = [x for x in result.results["examples"][stream] if x["set"] == place]
    assert len(items) == 6  # all of them, in test sets of six
    return np.mean([[cell[0] for cell in item["found"]] for item in items], axis=0)


def test_observed__hits_are_those_of_the_metric(whole):
    recalls = whole.matrices["test"]["image_to_text_R@1"]
    for place in range(3):
        wanted = [recalls["before"][place], *recalls["E"][:, place]]
        assert hits(whole, "test", place) == pytest.approx(wanted)
    for item in whole.results["examples"]["valid"]:
        for hit, text in item["found"]:
            assert bool(text) != hit and text != item["text"]


@pytest.mark.parametrize("captions", [1, 2])
def test_observed__hits_with_several_captions(tmp_path, captions):
    strategy, _ = build(eval_mb_size=3)
    benchmark = stub_benchmark((8, 8), model=strategy.model, test_captions=captions)
    result = run_stream(strategy, benchmark, tmp_path, verbose=0)
    recalls, chance = result.matrices["test"]["image_to_text_R@1"], result.results
    for place in range(2):
        wanted = [recalls["before"][place], *recalls["E"][:, place]]
        assert hits(result, "test", place) == pytest.approx(wanted)
    found = chance["chance"]["test"]
    assert found["image_to_text_R@1"] == pytest.approx([1 / 6] * 2)
    assert found["text_to_image_R@1"] == pytest.approx([1 / 6] * 2)
    assert "rsum" not in found


def test_observed__losses_and_their_terms(whole):
    losses = whole.results["losses"]
    assert losses["ends"] == [[0, 5], [1, 10], [2, 15]]
    terms = losses["terms"]
    assert terms["loss"]["at"] == list(range(1, 16))
    assert set(terms) > {"loss", "criterion"}
    late = terms["loss"]["at"][5:]
    others = [dict(zip(t["at"], t["mean"])) for n, t in terms.items() if n != "loss"]
    sums = [sum(other.get(k, 0.0) for other in others) for k in late]
    assert terms["loss"]["mean"][5:] == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("stop", [{"train": 7}, {"evaluation": 17}])
def test_observed__a_run_that_was_stopped_ends_with_the_same(tmp_path, whole, stop):
    with pytest.raises(Interrupted):
        go(tmp_path, "ContrastiveLwF", stop)
    result = go(tmp_path, "ContrastiveLwF", resume=True)[1]
    stored = json.loads((tmp_path / "results.json").read_text())
    for part in PARTS:
        assert result.results[part] == whole.results[part] == stored[part]


def test_observed__long_steps_have_few_points(tmp_path):
    options = {"budget_iterations": 90, "steps": 1}
    losses = go(tmp_path, **options)[1].results["losses"]
    assert list(losses["terms"]) == ["loss"]
    at = losses["terms"]["loss"]["at"]
    assert len(at) <= 40 and at[-1] == 90 and np.diff(at).max() <= 3


def test_observed__classes_their_names_and_pictures(tmp_path):
    model = stub_model()
    strategy = class_strategy(model, budget_iterations=2, eval_label_space="seen")
    benchmark = class_benchmark(model)
    result = run_stream(strategy, benchmark, tmp_path, verbose=0)
    accuracy = result.matrices["test"]["Top1_Acc_Exp"]
    chance = result.results["chance"]["test"]
    assert chance["Top1_Acc_Exp"] == pytest.approx([1 / 6] * 3)
    assert chance["accuracy_own"] == pytest.approx([1 / 2] * 3)
    assert chance["accuracy_seen"] == pytest.approx([1 / 6] * 3)
    for place in range(3):
        items = [x for x in result.results["examples"]["test"] if x["set"] == place]
        found = np.mean([[cell[0] for cell in item["found"]] for item in items], axis=0)
        if len(items) == len(benchmark.test_stream[place].dataset):
            assert found[1:] == pytest.approx(accuracy["E"][:, place])
        names = {benchmark.class_prompts.name(k) for k in range(6)}
        assert {item["text"] for item in items} <= names
    for item in result.results["examples"]["test"]:
        if item["picture"]:
            with Image.open(tmp_path / item["picture"]) as image:
                assert max(image.size) <= 96


def test_guessed_recalls__are_means_over_random_orders():
    owner = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 2], [3, 1]])
    found = guessed_recalls(owner, 3, 4, (1, 2, 9))
    rng, counts = np.random.default_rng(0), {1: [0.0, 0.0], 2: [0.0, 0.0]}
    own = np.zeros((3, 4), dtype=bool)
    own[owner[:, 1], owner[:, 0]] = True
    for _ in range(4000):
        for k, sums in counts.items():
            sums[0] += own[:, rng.permutation(4)[:k]].any(1).mean() / 4000
            sums[1] += own[rng.permutation(3)[:k]].any(0).mean() / 4000
    for k, (image, text) in counts.items():
        assert found[f"image_to_text_R@{k}"] == pytest.approx(image, abs=0.03)
        assert found[f"text_to_image_R@{k}"] == pytest.approx(text, abs=0.03)
    assert found["mean_R@9"] == 1
    plain = guessed_recalls(torch.arange(5), 5, 5, (1, 3))
    assert plain["mean_R@1"] == pytest.approx(0.2) and plain["mean_R@3"] == 0.6


# -------------------------------------------------------------------------- disk
@pytest.mark.parametrize("method", ["Sequential", "ContrastiveLwF"])
def test_run_stream__refuses_a_disk_that_is_too_small(tmp_path, monkeypatch, method):
    strategy, benchmark = build(method)
    trained = [p for p in strategy.model.parameters() if p.requires_grad]
    each = 3 * sum(p.numel() * p.element_size() for p in trained)
    free = {"bytes": 3 * each - 1}
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(0, 0, free["bytes"]))
    monkeypatch.setattr(strategy, "eval", None)  # not even that is begun
    out = tmp_path / "new" / "run"
    with pytest.raises(OSError, match=f"needs at least {3 * each:,} bytes"):
        run_stream(strategy, benchmark, out)
    assert not out.exists()
    with pytest.raises(ValueError, match="make room, keep less"):
        run_stream(strategy, benchmark, out, keep_steps="all")
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(0, 0, 3 * each))
    strategy, benchmark = build(method)
    benchmark = first_steps(benchmark, 1)
    run_stream(strategy, benchmark, out, checkpoint_iterations=None, verbose=0)


def test_require_space__says_what_is_missing(tmp_path):
    require_space(tmp_path / "not" / "there", 1, "A file")
    with pytest.raises(NoSpaceError, match="A file needs at least 1,0.* are free"):
        require_space(tmp_path / "not" / "there", 10**18, "A file")
