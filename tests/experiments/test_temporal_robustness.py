"""The study of temporal robustness: items, gaps, lines, released folders, command."""

import io
import json
import math
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.evaluation.functional import retrieval_metrics

STUDY = "temporal_robustness"
BASE = "tiny-emoji:emoji-2010"


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_items__mean_is_that_of_the_metrics(study, seed):
    images = unit(40, 6, seed=seed)
    texts = torch.nn.functional.normalize(images + 0.6 * unit(40, 6, seed=9), dim=1)
    items = study.retrieval_items(images, texts, [f"text {k}" for k in range(40)])
    wanted = retrieval_metrics(images, texts, ks=(1,))
    assert items.mean() == pytest.approx(wanted["mean_R@1"])
    assert set(items) <= {0, 0.5, 1} and len(set(items)) > 1


def test_retrieval_items__equal_captions_own_all_their_pictures(study):
    images = torch.eye(3)
    texts = torch.eye(3)[[0, 1, 0]]  # the third is the first one's caption
    items = study.retrieval_items(images, texts, ["a", "b", "a"])
    # The third picture is nearest to none of both captions: a tie of zeros.
    assert items.tolist() == [1, 1, 0.5]
    assert study.retrieval_items(texts, texts, ["a", "b", "c"]).tolist() == [0, 1, 0]
    # A collapsed encoder finds nothing.
    same = torch.ones(4, 2) / math.sqrt(2)
    assert not study.retrieval_items(same, same, list("abcd")).any()


def test_gap_and_excess__by_hand(study):
    ones, none = np.ones(8), np.zeros(8)
    half = np.array([0, 1] * 4)
    old = {"a": ones, "b": half, "c": none}
    new = {"a": ones, "b": half, "c": ones}
    assert study.gap(old) == [100, 100, 100] and study.gap(new) == [0, 0, 0]
    assert study.excess([old], [new]) == [100, 100, 100]
    assert study.excess([old, new], [new, old]) == [0, 0, 0]
    value, low, high = study.gap({"a": half, "b": ones})
    assert value == -50 and low < -50 < high < 0


def test_distance__of_two_lines_where_both_have_scores(study):
    old = [(10.0, 5.0), (30.0, 15.0)]  # y = x / 2
    new = [(20.0, 20.0), (40.0, 40.0)]  # y = x
    assert study.distance({"old": old, "new": new}) == pytest.approx(12.5)
    for few in ([(10.0, 1.0)], [(1.0, 1.0), (2.0, 2.0)]):
        assert math.isnan(study.distance({"old": few, "new": new}))


def shard(folder, samples):
    """Write a set as TiC-CLIP's are: shards beside the lists."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, parts in enumerate(samples):
            for end, content in parts.items():
                info = tarfile.TarInfo(f"{number:032x}-0.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "nshards.txt").write_text("1")


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_released__years_with_captions_and_classes(study, tmp_path):
    for year in (2016, 2022):
        pairs = [
            {"png": picture(year + k), "txt": f"a\n{year} {k}".encode()}
            for k in range(3)
        ]
        folder = tmp_path / "retrieval" / str(year)
        shard(folder, pairs)
        (folder / "dataset_type.txt").write_text("retrieval")
        folder = tmp_path / "datacompnet" / str(year)
        shard(folder, [{"png": picture(k), "cls": b"1"} for k in range(2)])
        (folder / "classnames.txt").write_text("cat\ndog")
        templates = folder / "zeroshot_classification_templates.txt"
        templates.write_text("a {c}\nthe {c}")
    found = study.released(tmp_path)
    assert [step.label for step in found["retrieval"]] == ["2016", "2022"]
    # A caption with a line feed is one caption.
    assert list(found["retrieval"][0].texts) == [f"a\n2016 {k}" for k in range(3)]
    named = found["classification"][1]
    assert named.labels == [1, 1] and list(named.prompts[1]) == ["a dog", "the dog"]
    assert named.pictures[1].size == (8, 8)
    with pytest.raises(ValueError, match="fewer than two years"):
        study.released(tmp_path / "retrieval")


@pytest.fixture
def small(study, monkeypatch):
    """Sixteen emoji of the first, second and last step."""
    embedded = study.embedded

    def few():
        def cut(step):
            parts = (step.pictures[:16], step.texts[:16], step.labels[:16])
            return study.Step(step.label, *parts, step.prompts)

        return {k: [cut(v[0]), cut(v[1]), cut(v[-1])] for k, v in embedded().items()}

    monkeypatch.setattr(study, "embedded", few)
    monkeypatch.setattr(study, "static_score", lambda *given: [50.0, 40.0, 60.0])


def test_main__models_of_both_sides(study, small, tmp_path, capsys):
    words = ["--new", "tiny-emoji:icons", "--out", str(tmp_path)]
    study.main(words)
    text = capsys.readouterr().out
    stored = json.loads((tmp_path / "figures.json").read_text())
    old, new = (stored["models"][side] for side in ("old", "new"))
    steps = old[BASE]["retrieval"]["steps"]
    assert list(steps) == ["2010", "2014", "2020-2024"]
    first, last = steps["2010"][0], steps["2020-2024"][0]
    value, low, high = old[BASE]["retrieval"]["gap"]
    assert value == pytest.approx(first - last) and low < value < high
    excess = stored["excess"]["retrieval"]
    gap = new["tiny-emoji:icons"]["retrieval"]["gap"][0]
    assert excess[0] == pytest.approx(value - gap)
    assert f"{BASE} (old)   static 50.0 (40.0 to 60.0)" in text
    assert stored["distance"] == {"first step": None, "static": None}
    for name in ("first_figure.png", "over_time.png", "figures.txt"):
        assert (tmp_path / name).stat().st_size > 100
