"""Who owns whom among equal captions and pictures, against a slow version."""

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import merge_equal_pairs, retrieval_metrics
from tests.evaluation.helpers import unit


def slow_recalls(scores, owner, pictures, captions, languages, ks):
    """Recalls by the definition, from the scores of all rows as they are given."""
    texts = {}  # (caption, language) -> first row
    for row, owned in enumerate(owner):
        texts.setdefault((captions[row], languages[owned]), row)
    shown = {}  # picture -> first sample
    for sample, picture in enumerate(pictures):
        shown.setdefault(picture, sample)
    pairs = {(captions[row], pictures[owner[row]]) for row in range(len(owner))}
    found = {}
    for way, queries, items in (
        ("text_to_image", list(texts.items()), list(shown.items())),
        ("image_to_text", list(shown.items()), list(texts.items())),
    ):
        ranks = []
        for query, row in queries:
            own, foreign = [], []
            for item, column in items:
                text, picture = (query, item) if way[0] == "t" else (item, query)
                score = scores[(row, column) if way[0] == "t" else (column, row)]
                (own if (text[0], picture) in pairs else foreign).append(score)
            ranks.append(sum(score > max(own) for score in foreign))
        for k in ks:
            found[f"{way}_R@{k}"] = np.mean([rank < k for rank in ranks])
    return found


@pytest.mark.parametrize("seed", range(12))
def test_merge__recalls_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    size, ks = int(rng.integers(3, 25)), (1, 2, 5)
    owner = np.concatenate(
        [np.arange(size), rng.integers(0, size, int(rng.integers(0, 30)))]
    )
    rng.shuffle(owner)
    pictures = rng.integers(0, max(2, size * 2 // 3), size)
    captions = rng.integers(0, max(2, len(owner) // 2), len(owner))
    languages = rng.integers(0, 3, size) if seed % 2 else np.zeros(size, int)
    features = unit(size, 6, seed=seed), unit(len(owner), 6, seed=seed + 99)
    marks = torch.from_numpy(np.stack([captions, captions * 0 - 1], axis=1))
    cut = len(owner) // 3
    shown, said, pairs = merge_equal_pairs(
        torch.from_numpy(owner),
        size,
        pictures=[torch.from_numpy(pictures)[:, None]],
        captions=[marks[:cut], marks[cut:]],
        languages=torch.from_numpy(languages[owner]) if seed % 2 else None,
    )
    found = retrieval_metrics(
        features[0][shown], features[1][said], pairs, ks=ks, ties="strict"
    )
    scores = (features[1] @ features[0].T).numpy()
    expected = slow_recalls(scores, owner, pictures, captions, languages, ks)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_merge__everything_differs_by_default():
    shown, said, pairs = merge_equal_pairs(torch.tensor([1, 0, 1]), 2)
    assert shown.tolist() == [0, 1] and said.tolist() == [0, 1, 2]
    assert pairs.tolist() == [[0, 1], [1, 0], [2, 1]]


def test_merge__one_caption_in_two_languages_belongs_to_the_pictures_of_both():
    _, said, pairs = merge_equal_pairs(
        torch.arange(3),
        3,
        captions=[torch.tensor([[7], [7], [8]])],
        languages=torch.tensor([0, 1, 1]),
    )
    assert said.tolist() == [0, 1, 2]
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]


def test_merge__padding_of_pictures_counts_and_that_of_captions_does_not():
    rows = [torch.tensor([[5, 0]]), torch.tensor([[5]])]
    shown, said, _ = merge_equal_pairs(torch.arange(2), 2, pictures=rows, captions=rows)
    assert len(shown) == 2 and len(said) == 1


def test_merge__padding_of_trimmed_blocks_is_not_a_word():
    tokens = [torch.tensor([[1, 5, 2]]), torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2]])]
    _, said, pairs = merge_equal_pairs(torch.arange(3), 3, captions=tokens)
    assert said.tolist() == [0, 2]
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 2]]


def test_merge__numbers_of_rows_must_fit():
    with pytest.raises(ValueError, match="2 rows .* 3 items"):
        merge_equal_pairs(torch.arange(3), 3, captions=[torch.zeros(2, 1)])
    with pytest.raises(ValueError, match="1 rows .* 3 items"):
        merge_equal_pairs(torch.arange(3), 3, pictures=[torch.zeros(1, 1)])
