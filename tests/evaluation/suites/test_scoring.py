"""Metrics of zero-shot tasks against tables by hand and slow loops."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import wilson_interval
from avalanche_clip.evaluation.suites.scoring import score
from avalanche_clip.evaluation.suites.suite import metrics_only
from avalanche_clip.evaluation.suites.tasks import ZeroShotTask


def task(kind, metric, images, *, labels=None, prompts=(), texts=(), groups=None):
    return ZeroShotTask(
        "t",
        kind,
        images,
        np.arange(len(images)),
        metric,
        labels=None if labels is None else np.asarray(labels),
        prompts=tuple((p,) if isinstance(p, str) else tuple(p) for p in prompts),
        texts=tuple(map(tuple, texts)),
        groups=None if groups is None else np.asarray(groups),
    )


def scored(images, rows, kind, metric, **options):
    """Score images whose texts have the features of ``rows``."""
    found = task(kind, metric, images, **options)
    return score(found, images, lambda texts: torch.stack([rows[t] for t in texts]))


def classified(predictions, labels, classes, metric="acc1", **options):
    images, names = torch.eye(classes)[predictions], [f"c{k}" for k in range(classes)]
    rows = dict(zip(names, torch.eye(classes), strict=True))
    return scored(
        images, rows, "classification", metric, labels=labels, prompts=names, **options
    )


# ----------------------------------------------------- tables of the specification
def test_class_metrics__by_hand():
    found = classified([0, 0, 0, 1, 1, 0, 3], [0, 0, 0, 0, 1, 1, 2], 4)
    assert found["acc1"] == pytest.approx(0.571429, abs=1e-6)
    assert found["mean_per_class_recall"] == pytest.approx(0.416667, abs=1e-6)
    assert math.isnan(found["acc5"]) and "acc5_low" not in found
    assert found["count"] == 7 and list(found)[0] == "acc1"
    assert (found["acc1_low"], found["acc1_high"]) == wilson_interval(4, 7)


def test_class_vectors__prompts_are_normalised_before_they_are_averaged():
    images = torch.tensor([[0.894427, 0.447214], [0.707107, 0.707107]])
    rows = {"long": torch.tensor([3.0, 4.0]), "short": torch.tensor([1.0, 0.0])}
    rows["other"] = torch.tensor([0.8, 0.6])
    # w = (.894, .447), other (.8, .6): scores 1 against .9839, and .9487 against .9899
    found = scored(
        images,
        rows,
        "classification",
        "acc1",
        labels=[0, 0],
        prompts=[("long", "short"), "other"],
    )
    assert found["acc1"] == 0.5


def test_average_precision__by_hand_and_without_positives():
    images = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    rows = {"a": torch.ones(1), "b": torch.ones(1)}
    found = scored(
        images,
        rows,
        "multilabel",
        "mean_average_precision",
        labels=[[1, 0], [0, 0], [1, 0], [0, 0]],
        prompts=["a", "b"],
    )
    assert found["mean_average_precision"] == pytest.approx(0.833333 / 2, abs=1e-6)
    assert found["mean_average_precision_low"] < 0.4167
    assert found["mean_average_precision_high"] > 0.4167


GRADES = [
    [(90, 10, 20), (30, 50, 20), (40, 60, 70), (80, 20, 10), (15, 25, 35)],
    [(62, 55, 12), (22, 41, 53), (33, 44, 11), (52, 31, 42), (21, 32, 43)],
    [(11, 12, 64), (23, 24, 28), (71, 36, 54), (81, 37, 26), (13, 51, 38)],
]


def retrieved(keep=lambda image, place: True, order=(0, 1, 2)):
    texts = [[f"{i}-{j}" for j in range(5) if keep(i, j)] for i in range(len(GRADES))]
    rows = {
        f"{i}-{j}": torch.tensor(GRADES[i][j]) / 100 for i in range(3) for j in range(5)
    }
    images = torch.eye(3)[list(order)]
    return scored(
        images, rows, "retrieval", "mean_R@1", texts=[texts[k] for k in order]
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_retrieval__table_of_three_images_in_any_order(order):
    found = retrieved(order=order)
    assert found["text_to_image_R@1"] == pytest.approx(5 / 15)
    assert found["text_to_image_mean_rank"] == pytest.approx(1.9333, abs=1e-4)
    assert found["text_to_image_median_rank"] == 2
    assert found["image_to_text_R@1"] == pytest.approx(1 / 3)
    assert [found[f"image_to_text_R@{k}"] for k in (5, 10)] == [1, 1]
    assert [found[f"text_to_image_R@{k}"] for k in (5, 10)] == [1, 1]
    assert found["mean_R@1"] == pytest.approx(1 / 3) == list(found.values())[0]
    assert (found["count"], found["texts"]) == (3, 15)
    low, high = found["text_to_image_R@1_low"], found["text_to_image_R@1_high"]
    assert (low, high) == wilson_interval(5, 15)
    assert found["mean_R@1_low"] < 1 / 3 < found["mean_R@1_high"]


def test_retrieval__of_unequal_numbers_of_captions():
    found, whole = retrieved(lambda i, j: (i, j) != (0, 4)), retrieved()
    assert found["texts"] == 14
    assert found["text_to_image_R@1"] == pytest.approx(5 / 14)
    for name in metrics_only(whole):
        if name.startswith("image_to_text_R"):
            assert found[name] == whole[name]


def test_retrieval__equal_captions_are_one_text_of_both_images():
    rows = {"same": torch.tensor([0.5, 0.5]), "b": torch.tensor([0.0, 1.0])}
    found = scored(
        torch.eye(2), rows, "retrieval", "mean_R@1", texts=[["same"], ["same", "b"]]
    )
    assert (found["texts"], found["mean_R@1"]) == (2, 1.0)


def test_collapsed_encoder__finds_nothing():
    one = F.normalize(torch.ones(1, 6), dim=1)
    images, names = one.expand(40, 6).clone(), [f"c{k}" for k in range(8)]
    rows = dict.fromkeys(names, one[0])
    labels = np.arange(40) % 8
    found = scored(images, rows, "classification", "acc1", labels=labels, prompts=names)
    assert (found["acc1"], found["acc5"], found["mean_per_class_recall"]) == (0, 0, 0)
    texts = [[f"{i}-{j}" for j in range(5)] for i in range(40)]
    rows = {t: one[0] for own in texts for t in own}
    found = scored(images, rows, "retrieval", "mean_R@1", texts=texts)
    assert found["mean_R@10"] == 0 and found["text_to_image_tie_share"] == 1
    assert found["text_to_image_mean_rank"] == 40
    assert found["image_to_text_mean_rank"] == 196


# ------------------------------------------------------------------- slow versions
@pytest.fixture(scope="module")
def many():
    generator = torch.Generator().manual_seed(3)
    vectors = F.normalize(torch.randn(9, 5, generator=generator), dim=1)
    labels = torch.randint(8, (70,), generator=generator)  # class 8 has no pictures
    images = vectors[labels] + 0.7 * torch.randn(70, 5, generator=generator)
    return SimpleNamespace(
        images=F.normalize(images, dim=1),
        labels=labels.numpy(),
        rows={f"c{k}": row for k, row in enumerate(vectors)},
        groups=np.arange(70) % 4 - 1,
    )


def test_class_metrics__equal_loops(many):
    names = list(many.rows)
    found = scored(
        many.images,
        many.rows,
        "classification",
        "macro_f1",
        labels=many.labels,
        prompts=names,
        groups=many.groups,
    )
    grades = many.images @ torch.stack(list(many.rows.values())).T
    order = grades.argsort(dim=1, descending=True)
    predictions = order[:, 0].tolist()
    hits = [p == y for p, y in zip(predictions, many.labels, strict=True)]
    top = [y in row[:5] for y, row in zip(many.labels, order.tolist(), strict=True)]
    assert found["acc1"] == pytest.approx(np.mean(hits))
    assert found["acc5"] == pytest.approx(np.mean(top))
    recalls, scores = [], []
    for c in range(8):
        own = [h for h, y in zip(hits, many.labels, strict=True) if y == c]
        said = sum(p == c for p in predictions)
        recalls.append(np.mean(own))
        scores.append(2 * sum(own) / (len(own) + said))
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert (
        found["macro_f1"] == pytest.approx(np.mean(scores)) == list(found.values())[0]
    )
    for k, good in ((1, hits), (5, top)):
        worst = min(np.mean(np.array(good)[many.groups == g]) for g in range(3))
        assert found[f"worst_group_acc{k}"] == pytest.approx(worst)
    for name, value in metrics_only(found).items():
        assert found[f"{name}_low"] < value < found[f"{name}_high"]


def test_worst_group__is_of_one_group_and_leaves_out_what_has_none():
    labels, groups = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, -1, -1]
    found = classified([0, 0, 0, 0, 0, 0], labels, 2, "worst_group_acc1", groups=groups)
    assert found["worst_group_acc1"] == 0.5 == list(found.values())[0]
    assert "worst_group_acc5" not in found


def test_jaccard__as_many_candidates_as_belong_to_a_cue():
    grades = torch.tensor([0.9, 0.8, 0.1, 0.5, 0.5, 0.2, 0.7, 0.6])
    found = scored(
        grades[:, None],
        {"x": torch.ones(1), "y": torch.ones(1)},
        "association",
        "jaccard",
        labels=[1, 0, 1, 0, 1, 0, 1, 1],
        prompts=["x", "y"],
        groups=[0, 0, 0, 0, 1, 1, 1, 1],
    )
    # x: of {0, 2} come {0, 1}: 1 of 3. y: {6, 7, 4} is right: 3 of 3.
    assert found["jaccard"] == pytest.approx((1 / 3 + 1) / 2)
    assert (found["jaccard_low"], found["jaccard_high"]) == pytest.approx((1 / 3, 1))
    tied = scored(
        torch.ones(2, 1),
        {"x": torch.ones(1)},
        "association",
        "jaccard",
        labels=[1, 0],
        prompts=["x"],
        groups=[0, 0],
    )
    assert tied["jaccard"] == 0


def test_classification__chance_of_random_features():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(4000, 16, generator=generator), dim=1)
    names = [f"c{k}" for k in range(10)]
    vectors = torch.randn(10, 16, generator=generator)
    rows = dict(zip(names, vectors, strict=True))
    labels = np.arange(4000) % 10
    found = scored(images, rows, "classification", "acc1", labels=labels, prompts=names)
    assert found["acc1_low"] < 0.1 < found["acc1_high"]
    assert found["acc5_low"] < 0.5 < found["acc5_high"]
