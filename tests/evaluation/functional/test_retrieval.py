import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import retrieval_metrics, retrieval_ranks

# rows: captions, five per image; columns: images
FIVE_CAPTIONS = torch.tensor(
    [
        [[0.90, 0.10, 0.20], [0.30, 0.50, 0.20], [0.40, 0.60, 0.70]]
        + [[0.80, 0.20, 0.10], [0.15, 0.25, 0.35]],
        [[0.62, 0.55, 0.12], [0.22, 0.41, 0.53], [0.33, 0.44, 0.11]]
        + [[0.52, 0.31, 0.42], [0.21, 0.32, 0.43]],
        [[0.11, 0.12, 0.64], [0.23, 0.24, 0.28], [0.71, 0.36, 0.54]]
        + [[0.81, 0.37, 0.26], [0.13, 0.51, 0.38]],
    ],
    dtype=torch.float64,
).reshape(15, 3)
FIVE_OWNERS = torch.arange(3).repeat_interleave(5)
THREE_IMAGES = torch.eye(3, dtype=torch.float64)


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def lattice(rows, dim, seed):
    """Small integers: exact scores in any order of summation, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (rows, dim), generator=generator).double()


def random_pairs(num_images, num_texts, extra, seed):
    """Many-to-many pairs in which every image and every text occurs."""
    rng = np.random.default_rng(seed)
    pairs = [(t, int(rng.integers(num_images))) for t in range(num_texts)]
    pairs += [(int(rng.integers(num_texts)), i) for i in range(num_images)]
    for _ in range(extra):
        pairs.append((int(rng.integers(num_texts)), int(rng.integers(num_images))))
    return pairs


def loop_ranks(scores, own_sets, ties, tie_eps):
    """Rank and tie flag of each row by comparing one pair at a time."""
    ranks, tied = [], []
    for row, own in zip(scores, own_sets, strict=True):
        best = max(row[i] for i in own)
        foreign = [score for i, score in enumerate(row) if i not in own]
        strict = sum(score > best for score in foreign)
        pessimistic = sum(score >= best - tie_eps for score in foreign)
        ranks.append(
            {
                "strict": strict,
                "pessimistic": pessimistic,
                "expected": (strict + pessimistic) / 2,
            }[ties]
        )
        tied.append(any(abs(score - best) <= tie_eps for score in foreign))
    return ranks, tied


def loop_metrics(images, texts, pairs, ks, ties, tie_eps):
    scores = texts @ images.T
    text_sets = [{i for t, i in pairs if t == m} for m in range(len(texts))]
    image_sets = [{t for t, i in pairs if i == n} for n in range(len(images))]
    result, recalls = {}, []
    for name, table, own in (
        ("image_to_text", scores.T.tolist(), image_sets),
        ("text_to_image", scores.tolist(), text_sets),
    ):
        ranks, tied = loop_ranks(table, own, ties, tie_eps)
        for k in ks:
            result[f"{name}_R@{k}"] = sum(r < k for r in ranks) / len(ranks)
            recalls.append(result[f"{name}_R@{k}"])
        result[f"{name}_median_rank"] = math.floor(np.median(ranks)) + 1
        result[f"{name}_mean_rank"] = np.mean(ranks) + 1
        result[f"{name}_tie_share"] = sum(tied) / len(tied)
    for k in ks:
        both = result[f"image_to_text_R@{k}"], result[f"text_to_image_R@{k}"]
        result[f"mean_R@{k}"] = sum(both) / 2
    result["rsum"] = 100 * sum(recalls)
    return result


def test_retrieval__five_captions_by_hand():
    ranks = retrieval_ranks(THREE_IMAGES, FIVE_CAPTIONS, FIVE_OWNERS)
    assert ranks.text_to_image.tolist() == [0, 1, 2, 0, 2, 1, 1, 0, 2, 1, 0, 0, 1, 2, 1]
    assert ranks.image_to_text.tolist() == [0, 1, 1]
    metrics = retrieval_metrics(
        THREE_IMAGES, FIVE_CAPTIONS, FIVE_OWNERS, ks=(1, 2, 3, 5, 10)
    )
    expected = {
        "text_to_image_R@1": 5 / 15,
        "text_to_image_R@2": 11 / 15,
        "text_to_image_R@3": 1,
        "text_to_image_R@10": 1,
        "text_to_image_mean_rank": 1.93333333,
        "text_to_image_median_rank": 2,
        "image_to_text_R@1": 1 / 3,
        "image_to_text_R@2": 1,
        "image_to_text_R@5": 1,
        "mean_R@1": 1 / 3,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_retrieval__keys_are_complete_and_values_are_floats():
    metrics = retrieval_metrics(THREE_IMAGES, FIVE_CAPTIONS, FIVE_OWNERS)
    directions = ("image_to_text", "text_to_image")
    names = {f"{d}_R@{k}" for d in (*directions, "mean") for k in (1, 5, 10)}
    rest = ("median_rank", "mean_rank", "tie_share")
    names |= {f"{d}_{name}" for d in directions for name in rest}
    assert set(metrics) == names | {"rsum"}
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("ties", ["pessimistic", "strict", "expected"])
@pytest.mark.parametrize("seed", range(4))
def test_retrieval__equals_the_loop_with_many_owners_and_many_ties(ties, seed):
    images, texts = lattice(11, 3, seed), lattice(29, 3, seed + 100)
    pairs = random_pairs(11, 29, extra=9, seed=seed)
    options = {"ks": (1, 2, 7), "ties": ties, "tie_eps": 1e-6}
    got = retrieval_metrics(images, texts, pairs, chunk_size=4, **options)
    assert got == pytest.approx(loop_metrics(images, texts, pairs, **options))
    assert got["text_to_image_tie_share"] > 0


@pytest.mark.parametrize("ties", ["pessimistic", "strict", "expected"])
@pytest.mark.parametrize("tie_eps", [0.0, 0.05])
def test_retrieval__equals_the_loop_on_random_features(ties, tie_eps):
    images, texts = unit(13, 6), unit(37, 6, seed=1)
    pairs = random_pairs(13, 37, extra=5, seed=3)
    options = {"ks": (1, 5), "ties": ties, "tie_eps": tie_eps}
    got = retrieval_metrics(images, texts, np.array(pairs), chunk_size=8, **options)
    assert got == pytest.approx(loop_metrics(images, texts, pairs, **options))


def test_retrieval__diagonal_vector_and_pairs_agree():
    images, texts = unit(9, 4), unit(9, 4, seed=1)
    diagonal = retrieval_metrics(images, texts)
    assert diagonal == retrieval_metrics(images, texts, torch.arange(9))
    pairs = torch.arange(9).repeat(2, 1).T
    assert diagonal == retrieval_metrics(images, texts, pairs)
    assert diagonal == retrieval_metrics(images, texts, pairs.repeat(3, 1).flip(0))


def test_retrieval__two_texts_with_a_vector_of_owners_is_no_list_of_pairs():
    metrics = retrieval_metrics(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
    assert metrics["mean_R@1"] == 1


@pytest.mark.parametrize("ties", ["pessimistic", "strict", "expected"])
def test_retrieval__chunk_size_does_not_change_float64_ranks(ties):
    images, texts = unit(53, 16), unit(131, 16, seed=1)
    pairs = random_pairs(53, 131, extra=20, seed=0)
    reference = retrieval_ranks(images, texts, pairs, ties=ties, chunk_size=1000)
    for chunk_size in (1, 7, 32, 53, 54, 131):
        ranks = retrieval_ranks(images, texts, pairs, ties=ties, chunk_size=chunk_size)
        assert all(torch.equal(a, b) for a, b in zip(ranks, reference, strict=True))


@pytest.mark.parametrize("ties", ["pessimistic", "strict"])
@pytest.mark.parametrize("chunk_size", [64, 500, 1024])
def test_retrieval__an_item_never_beats_itself(chunk_size, ties):
    features = unit(500, 512, dtype=torch.float32)
    ranks = retrieval_ranks(features, features, ties=ties, chunk_size=chunk_size)
    assert not ranks.image_to_text.any() and not ranks.text_to_image.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_retrieval__collapsed_encoder_scores_zero(dtype):
    images = unit(1, 64, dtype=dtype).repeat(500, 1)
    owner = torch.arange(500).repeat_interleave(5)
    texts = images[:1].repeat(2500, 1)
    metrics = retrieval_metrics(images, texts, owner)
    assert all(value == 0 for name, value in metrics.items() if "R@" in name)
    assert metrics["image_to_text_tie_share"] == metrics["text_to_image_tie_share"] == 1
    assert metrics["text_to_image_mean_rank"] == 500
    assert metrics["image_to_text_mean_rank"] == 2496
    assert metrics["image_to_text_median_rank"] == 2496
    assert metrics["rsum"] == 0


@pytest.mark.parametrize("shape", [(10, 64), (50, 64), (256, 50), (20, 512)])
@pytest.mark.parametrize("scale", [1.0, 22.0, 1e4])
def test_retrieval__collapsed_encoder_with_long_features_scores_zero(shape, scale):
    generator = torch.Generator().manual_seed(0)
    features = scale * torch.randn(1, shape[1], generator=generator)
    features = features.repeat(shape[0], 1)
    metrics = retrieval_metrics(features, features.clone())
    assert metrics["mean_R@1"] == 0 and metrics["image_to_text_tie_share"] == 1


def test_retrieval__tie_eps_of_zero_is_exact():
    images = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    texts = torch.tensor([[100.0, 99.99999], [99.99999, 100.0]])
    assert retrieval_metrics(images, texts, tie_eps=0.0)["mean_R@1"] == 1
    assert retrieval_metrics(images, texts)["mean_R@1"] == 0


def test_retrieval__shared_captions_are_no_errors():
    # texts 0 and 1 describe images 0 and 1 alike; as one caption both are right
    images, texts = torch.eye(3)[[0, 0, 2]], torch.eye(3)[[0, 2]]
    metrics = retrieval_metrics(images, texts, [(0, 0), (0, 1), (1, 2)], ks=(1,))
    assert metrics["mean_R@1"] == 1 and metrics["image_to_text_tie_share"] == 0
    apart = retrieval_metrics(images, torch.eye(3)[[0, 0, 2]], ks=(1,))
    assert apart["mean_R@1"] == pytest.approx(1 / 3)


def test_retrieval__negative_scores_count():
    images = torch.tensor([[-1.0], [-2.0]])
    metrics = retrieval_metrics(images, torch.tensor([[1.0], [1.0]]), ks=(1,))
    assert metrics["text_to_image_R@1"] == 0.5


def test_retrieval__one_image_and_one_text():
    metrics = retrieval_metrics(np.ones((1, 2)), np.ones((1, 2)))
    assert metrics["rsum"] == 600 and metrics["image_to_text_median_rank"] == 1
    assert metrics["image_to_text_tie_share"] == 0


def test_retrieval__numpy_and_torch_agree_and_inputs_stay_as_they_are():
    images, texts = unit(8, 4, dtype=torch.float32), unit(8, 4, seed=1).float()
    arrays = images.numpy().copy(), texts.numpy().copy()
    arrays[0].flags.writeable = False
    assert retrieval_metrics(*arrays) == retrieval_metrics(images, texts)
    assert np.array_equal(arrays[0], images.numpy())


def test_retrieval__autocast_does_not_lower_the_precision():
    images, texts = unit(64, 32, dtype=torch.float32), unit(64, 32, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = retrieval_ranks(images.requires_grad_(), texts)
    outside = retrieval_ranks(images, texts)
    assert torch.equal(inside.text_to_image, outside.text_to_image)
    assert not inside.text_to_image.requires_grad


def test_retrieval__coarse_products_are_off_inside_and_back_afterwards(monkeypatch):
    def precision():
        new = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
        return new or torch.get_float32_matmul_precision()

    seen, product = [], torch.mm

    def watched(*args, **kwargs):
        seen.append(precision())
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        chosen = precision()
        retrieval_ranks(torch.eye(2), torch.eye(2))
        with pytest.raises(ValueError):
            retrieval_ranks(torch.eye(2), torch.eye(3))
        assert set(seen) <= {"ieee", "highest"} and seen
        assert precision() == chosen
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_retrieval__huge_but_finite_features_are_accepted():
    identity = torch.eye(2) * 1e-30
    huge = torch.tensor([[3e38, 0.0], [3e38, 3e38]])
    assert not torch.isfinite(huge.sum())
    assert retrieval_metrics(huge, identity, ks=(1,))["image_to_text_R@1"] == 0.5


NAN = torch.tensor([[math.nan, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    "images, texts, owner, message",
    [
        (torch.eye(2), torch.ones(3, 2), None, "without owner"),
        (torch.eye(2), torch.ones(2, 3), None, r"\(2, 2\) and \(2, 3\)"),
        (torch.eye(2), torch.ones(2), None, r"text_features of shape \(2,\)"),
        (torch.ones(0, 2), torch.ones(0, 2), None, r"\(0, 2\)"),
        (torch.eye(2), torch.eye(2).double(), None, "float32 and torch.float64"),
        (torch.eye(2).half(), torch.eye(2).half(), None, "float16"),
        (NAN, torch.eye(2), None, "image_features.*NaN"),
        (torch.eye(2), torch.eye(2) / 0, None, "text_features.*NaN or infinite"),
        (torch.eye(2), torch.eye(2), [0, 2], r"0\.\.1"),
        (torch.eye(2), torch.eye(2), [0, -1], r"holds -1"),
        (torch.eye(2), torch.eye(2), [0, 0], "1 of 2 images have no partner"),
        (torch.eye(2), torch.eye(2), [[0, 0], [0, 1]], "texts have no partner"),
        (torch.eye(2), torch.eye(2), [0.0, 1.0], "integers"),
        (torch.eye(2), torch.eye(2), [0, 1, 1], r"owner of shape \(3,\)"),
        (torch.eye(2), torch.eye(2), np.zeros((2, 3), int), r"\(2, 3\)"),
        (torch.eye(2), torch.eye(2), np.zeros((0, 2), int), "no partner"),
    ],
)
def test_retrieval__refuses_what_does_not_fit(images, texts, owner, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(images, texts, owner)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ties": "optimistic"}, "optimistic"),
        ({"tie_eps": -1.0}, "tie_eps=-1.0"),
        ({"tie_eps": math.nan}, "tie_eps"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"ks": ()}, "ks"),
        ({"ks": (0,)}, "ks"),
        ({"ks": (1.5,)}, "ks"),
        ({"ks": 5}, "ks=5"),
        ({"ks": (1, None)}, "ks"),
        ({"chunk_size": 2.0}, "chunk_size=2.0"),
        ({"chunk_size": "8"}, "chunk_size='8'"),
    ],
)
def test_retrieval__refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.eye(2), torch.eye(2), **options)
