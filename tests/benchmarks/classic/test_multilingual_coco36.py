"""The benchmark of CLL-CLIP on small files of the released formats."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    TeacherFeatureStore,
    attach_teacher_features,
    prepare_benchmark,
)
from avalanche_clip.benchmarks.classic import multilingual_coco36
from avalanche_clip.benchmarks.datasets.coco36 import Coco36
from tests.benchmarks.datasets.coco36_files import (
    ENGLISH,
    GERMAN,
    write_coco,
    write_pictures,
    write_xm3600,
)
from tests.benchmarks.small_streams import CharTokenizer, check_ids_differ, sizes_of
from tests.refused import refused


class Model:
    """A tokenizer and a transform to tensors."""

    def __init__(self):
        self.tokenizer = CharTokenizer()

    def transform(self, train):
        from torchvision.transforms.functional import to_tensor

        return to_tensor


@pytest.fixture
def root(tmp_path):
    write_pictures(tmp_path / "pictures")
    return write_coco(tmp_path)


def test_stream__has_train_valid_test_and_xm3600(root, tmp_path):
    texts = {"en": [["dog"], ["cat", "cats"]], "de": [["Hund"], ["Katze"]]}
    write_xm3600(tmp_path / "captions.jsonl", texts)
    benchmark = multilingual_coco36(
        root,
        tmp_path / "pictures",
        languages=["de", "en"],
        validation=True,
        xm3600=tmp_path,
    )
    assert benchmark.languages == ("de", "en")
    assert benchmark.language_codes == {"de": 2, "en": 0}
    assert sorted(benchmark.streams) == ["test", "train", "valid", "xm3600"]
    sizes = {n: sizes_of(s) for n, s in benchmark.streams.items()}
    assert sizes == {"train": [3, 3], "test": [2, 2], "valid": [2, 2], "xm3600": [2, 2]}
    check_ids_differ(benchmark)
    model = Model()
    prepared = prepare_benchmark(benchmark, model)
    german = prepared.train_stream[0].dataset
    batch, targets, _ = german.collate_fn([german[k] for k in range(3)])
    assert model.tokenizer.calls[-1] == (list(GERMAN), [2, 2, 2])
    assert batch["image"].shape == (3, 3, 4, 6)
    assert targets.tolist() == [0, 0, 1] and batch["text_id"].tolist() == [0, 1, 2]
    test = prepared.test_stream[1].dataset
    batch, *_ = test.collate_fn([test[k] for k in range(2)])
    assert batch["owner"].tolist() == [0, 0, 1]
    assert list(benchmark.teacher_captions) == list(ENGLISH)


def test_released_features__train_without_any_picture(root):
    files = Coco36(root).feature_files("openai/tiny")
    store = TeacherFeatureStore.from_released(files.texts, files.images)
    benchmark = multilingual_coco36(root, None, languages=["en", "de"])
    benchmark = attach_teacher_features(benchmark, store, images=False)
    prepared = prepare_benchmark(benchmark, Model())
    german = prepared.train_stream[1].dataset
    batch, *_ = german.collate_fn([german[k] for k in (2, 0)])
    assert batch["image"].shape == (2, 0)
    expected = torch.from_numpy(np.load(files.images)[[1, 0]])
    assert torch.equal(batch["teacher_image"], expected)
    assert torch.equal(
        batch["teacher_text"], torch.from_numpy(np.load(files.texts)[[2, 0]])
    )


def test_languages__are_checked(root):
    for wrong in ("de", [], ["de", "de"], ["qu"]):
        refused("distinct codes", multilingual_coco36, root, languages=wrong)
    with pytest.raises(FileNotFoundError, match="translated/fr/test.json"):
        multilingual_coco36(root, languages=["en", "fr"])
