"""Blind pairs against a version in plain loops and the table of the paper's note."""

import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import blind_pairs as module
from avalanche_clip.evaluation.functional import clip_blind_pairs


def brute_force(clip, reference):
    """(a, b) -> both cosines of all pairs, in float64 and plain loops."""

    def cosine(bank, a, b):
        dot = sum(x * y for x, y in zip(bank[a], bank[b], strict=True))
        return dot / math.hypot(*bank[a]) / math.hypot(*bank[b])

    banks = clip.tolist(), reference.tolist()
    pairs = [(a, b) for a in range(len(clip)) for b in range(a + 1, len(clip))]
    return {pair: [cosine(bank, *pair) for bank in banks] for pair in pairs}


def near_banks(count=60, dims=(16, 24), spread=0.25, seed=0, dtype=torch.float32):
    """Features of which some lie close together to CLIP, whatever the reference."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count // 6, dims[0], generator=generator, dtype=torch.float64)
    noise = torch.randn(count, dims[0], generator=generator, dtype=torch.float64)
    clip = centres[torch.arange(count) % len(centres)] + spread * noise
    reference = torch.randn(count, dims[1], generator=generator, dtype=torch.float64)
    return clip.to(dtype), (reference + 0.4).to(dtype)


def numbers(pairs):
    return [(pair.first, pair.second) for pair in pairs]


def directions(*degrees, dtype=torch.float64):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_blind_pairs__angles_of_the_note(dtype):
    clip, dino = directions(0, 10, 20, dtype=dtype), directions(0, 60, 30, dtype=dtype)
    (pair,) = clip_blind_pairs(clip, dino)
    assert pair[:2] == (0, 1)
    assert pair[2:] == pytest.approx((0.984808, 0.5), abs=1e-6)
    close = numbers(clip_blind_pairs(clip, dino, reference_threshold=0.9))
    assert close == [(0, 1), (1, 2)]
    far = clip_blind_pairs(clip, dino, clip_threshold=0.9, reference_threshold=0.9)
    assert numbers(far) == [(0, 1), (1, 2), (0, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.1, 0.25, 0.6])
def test_clip_blind_pairs__equals_loops_for_any_tile(dtype, spread):
    clip, reference = near_banks(36, (5, 7), spread=spread, dtype=dtype)
    cosines = brute_force(clip, reference)
    for high, low in [(0.95, 0.6), (0.9, 0.2), (-1, 1), (0.3, 0.1)]:
        wanted = {p: c for p, c in cosines.items() if c[0] > high and c[1] < low}
        results = [
            clip_blind_pairs(
                clip,
                reference,
                clip_threshold=high,
                reference_threshold=low,
                chunk_size=size,
            )
            for size in (2, 7, 32, 1000)
        ]
        assert all(result == results[0] for result in results)
        found = {pair[:2]: pair[2:] for pair in results[0]}
        assert found.keys() == wanted.keys()
        for pair, values in wanted.items():
            assert found[pair] == pytest.approx(values, abs=1e-6)
        gaps = [pair[2] - pair[3] for pair in results[0]]
        assert gaps == sorted(gaps, reverse=True)


def test_clip_blind_pairs__equals_the_whole_matrices_on_two_thousand():
    clip, reference = near_banks(2000, (64, 96), spread=0.2, seed=1)
    pairs = clip_blind_pairs(clip, reference, reference_threshold=0.3, chunk_size=300)
    a, b = F.normalize(clip.double()), F.normalize(reference.double())
    mask = ((a @ a.T > 0.95) & (b @ b.T < 0.3)).triu(1)
    assert sorted(numbers(pairs)) == [tuple(p) for p in mask.nonzero().tolist()]
    assert len(pairs) > 1000


def test_clip_blind_pairs__thresholds_are_strict():
    # Cosines that are exactly a threshold, in the type of the features.
    clip = torch.tensor([[1.0, 0.0], [0.75, math.sqrt(1 - 0.75**2)]])
    reference = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert not clip_blind_pairs(clip, -reference, clip_threshold=0.75)
    options = {"clip_threshold": 0.7}
    assert not clip_blind_pairs(clip, reference, **options)
    assert not clip_blind_pairs(clip.double(), reference.double(), **options)
    just = {"clip_threshold": 0.7499, "reference_threshold": 0.6001}
    assert numbers(clip_blind_pairs(clip, reference, **just)) == [(0, 1)]


def test_clip_blind_pairs__length_and_kind_of_the_features_do_not_matter():
    clip, reference = near_banks()
    wanted = clip_blind_pairs(clip, reference)
    lengths = torch.tensor([0.5, 2.0, 1024.0]).repeat(20)[:, None]
    assert clip_blind_pairs(clip * lengths, reference / lengths) == wanted
    assert clip_blind_pairs(clip.numpy(), reference.numpy()) == wanted
    huge = clip_blind_pairs(clip * 2.0**120, reference * 2.0**-120)
    assert numbers(huge) == numbers(wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert clip_blind_pairs(clip.requires_grad_(), reference) == wanted


def test_clip_blind_pairs__follow_the_order_of_the_rows():
    clip, reference = near_banks()
    order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(3))
    moved = clip_blind_pairs(clip[order], reference[order])
    back = {tuple(sorted((int(order[p[0]]), int(order[p[1]])))) for p in moved}
    assert back == set(numbers(clip_blind_pairs(clip, reference)))


def test_clip_blind_pairs__collapsed_model_confuses_whatever_differs():
    _, reference = near_banks(30)
    pairs = clip_blind_pairs(torch.ones(30, 5), reference, reference_threshold=1)
    assert len(pairs) == 30 * 29 // 2
    assert not clip_blind_pairs(torch.ones(30, 5), torch.ones(30, 2))
    assert clip_blind_pairs(torch.ones(1, 5), torch.ones(1, 2)) == []


def test_clip_blind_pairs__cap_takes_the_widest_gaps_first():
    clip, reference = near_banks()
    every = clip_blind_pairs(clip, reference)
    for most in (1, 2):
        used, kept = dict.fromkeys(range(len(clip)), 0), []
        for pair in every:
            if max(used[pair.first], used[pair.second]) < most:
                used[pair.first] += 1
                used[pair.second] += 1
                kept.append(pair)
        assert clip_blind_pairs(clip, reference, max_per_image=most) == kept
    assert len(kept) < len(every)


def test_clip_blind_pairs__near_duplicates_are_dropped_on_request():
    clip, dino = directions(0, 1, 2), directions(0, 2, 40)
    options = {"clip_threshold": 0.9, "reference_threshold": 1.0}
    assert len(clip_blind_pairs(clip, dino, **options)) == 3
    kept = clip_blind_pairs(clip, dino, duplicate_threshold=0.99, **options)
    assert numbers(kept) == [(0, 2), (1, 2)]
    with pytest.raises(ValueError, match="no effect"):
        clip_blind_pairs(clip, dino, duplicate_threshold=0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_features": torch.zeros(60, 4)}, "zeros only in row 0"),
        (
            {"clip_features": torch.ones(59, 4)},
            "60 rows of reference_features given, 59",
        ),
        ({"clip_features": torch.ones(60)}, "clip_features of shape"),
        ({"reference_features": torch.ones(60, 2).half()}, "half precision"),
        ({"reference_features": torch.full((60, 2), math.nan)}, "NaN"),
        ({"clip_threshold": 1.5}, "clip_threshold"),
        ({"reference_threshold": math.nan}, "reference_threshold"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"max_per_image": 0}, "max_per_image"),
        ({"duplicate_threshold": "0.99"}, "duplicate_threshold"),
    ],
)
def test_clip_blind_pairs__refuses(changes, message):
    clip, reference = near_banks()
    given = {"clip_features": clip, "reference_features": reference, **changes}
    banks = [given.pop(name) for name in ("clip_features", "reference_features")]
    with pytest.raises(ValueError, match=message):
        clip_blind_pairs(*banks, **given)


def test_clip_blind_pairs__says_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "MOST_LISTED", 100)
    with pytest.raises(ValueError, match="More than 100 pairs of 60 images"):
        clip_blind_pairs(*near_banks(), clip_threshold=-1, reference_threshold=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_blind_pairs__no_cosine_exceeds_one(dtype):
    clip = torch.full((40, 7), 0.1, dtype=dtype) * torch.arange(1, 41)[:, None]
    _, reference = near_banks(40)
    assert not clip_blind_pairs(clip, reference, clip_threshold=1)
    pairs = clip_blind_pairs(clip, reference, clip_threshold=0.999999)
    assert pairs and all(pair.clip_cosine <= 1 for pair in pairs)
