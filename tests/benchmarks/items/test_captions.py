"""Captions are read without pictures, as training may see them."""

import torch
from avalanche.benchmarks.utils import TransformGroups

from avalanche_clip.benchmarks import make_image_text_dataset
from avalanche_clip.benchmarks.items.captions import read_captions
from tests.benchmarks.small_streams import Texts


def test_captions__are_read_without_pictures_and_transforms():
    groups = TransformGroups(dict.fromkeys(("train", "eval"), (None, str.lower)))
    data = make_image_text_dataset(Texts("A", ["B", "C"]), transform_groups=groups)
    assert list(read_captions(data.subset([1, 0]))) == [["B", "C"], ["A"]]
    assert list(read_captions(data, [0])) == [["A"]]


def test_frozen_text_transforms__belong_to_the_data():
    groups = TransformGroups(dict.fromkeys(("train", "eval"), (None, str.lower)))
    data = make_image_text_dataset(Texts("A ", "B "), transform_groups=groups)
    data = data.freeze_transforms().replace_current_transform_group((None, str.strip))
    data = data.freeze_transforms().subset([1, 0])
    assert list(read_captions(data)) == [["b"], ["a"]]


def test_token_ids_of_several_captions__are_split():
    ids = torch.tensor([[1, 2], [3, 4]])
    found = next(read_captions(make_image_text_dataset(Texts(ids))))
    assert [row.tolist() for row in found] == [[1, 2], [3, 4]]
