"""Stored teacher features: making, checking, attaching."""

import copy
import json
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    multilingual_benchmark,
    prepare_benchmark,
    with_facts,
    without_images,
)
from avalanche_clip.benchmarks.teacher.precompute import (
    attach_teacher_features,
    precompute_teacher_features,
    teacher_ids,
)
from avalanche_clip.benchmarks.teacher.released import read_line_rows
from avalanche_clip.benchmarks.teacher.store import TeacherFeatureStore
from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.evaluation.loop import embed
from avalanche_clip.models.encoders.output import CLIPOutput
from tests.helpers import IMAGE_SIZE, StubDualEncoder
from tests.refused import refused

WORDS = ("dog", "cat", "tree", "house", "sun")


class Teacher(StubDualEncoder):
    """A stub that can tell its weights apart and counts what it encodes."""

    def __init__(self, seed=0, **options):
        super().__init__(seed, **options)
        self.encoded = {"image": 0, "text": 0}

    def state_fingerprint(self, tower):
        names = {"image": ("image_proj",), "text": ("token", "text_proj")}[tower]
        named = self.state_dict().items()
        return FingerprintCache()((n, t) for n, t in named if n.startswith(names))

    def encode_image(self, image, normalize=True):
        self.encoded["image"] += len(image)
        return super().encode_image(image, normalize)

    def encode_text(self, text, normalize=True):
        self.encoded["text"] += len(text)
        return super().encode_text(text, normalize)


class Triplets:
    """Six samples of three pictures, captioned in another language."""

    def __init__(self, language="en", english=WORDS, pictures="abc", seed=0):
        self.seed = seed
        self.language, self.words, self.pictures = language, english, pictures
        self.decoded = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.decoded += 1
        generator = torch.Generator().manual_seed(index // 2 + 10 * self.seed)
        image = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        return image, self.text(index)

    def text(self, index):
        word = self.words[index]
        return word if self.language == "en" else word[::-1]

    def english(self, index):
        return self.words[index]

    def image_name(self, index):
        return self.pictures[index // 2]


def triplets(language="en", first_id=0, **options):
    pairs = Triplets(language, **options)
    ids = np.arange(first_id, first_id + 5)
    data = make_image_text_dataset(pairs, sample_ids=ids)
    return with_facts(
        data, {"image_id": [30, 30, 10, 10, 20], "text_id": [4, 3, 2, 1, 0]}
    )


def expected(model):
    """Features of the five samples, computed directly."""
    model.eval()
    pairs = Triplets()
    with torch.no_grad():
        images = model.encode_image(
            torch.stack([pairs[k][0] for k in range(5)]), normalize=False
        )
        texts = model.encode_text(model.tokenizer(list(WORDS)), normalize=False)
    return images, texts


def make(path, data=None, model=None, **options):
    model, data = model or Teacher(), data or triplets()
    return precompute_teacher_features(model, data, path, **options)


# ------------------------------------------------------------------- making
@pytest.mark.parametrize("batch_size", [1, 2, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_store__holds_each_picture_and_caption_once(tmp_path, batch_size, dtype):
    model = Teacher(dropout=0.5).train()
    store = make(tmp_path / "s", model=model, batch_size=batch_size, dtype=dtype)
    assert model.training and model.dropout.training
    assert model.encoded == {"image": 3, "text": 5}
    images, texts = expected(model)
    close = (
        {"rtol": 1e-5, "atol": 1e-6}
        if dtype == "float32"
        else {"rtol": 2e-3, "atol": 2e-3}
    )
    torch.testing.assert_close(store.images([30, 30, 10, 10, 20]), images, **close)
    torch.testing.assert_close(store.texts([4, 3, 2, 1, 0]), texts, **close)
    assert store.images([10]).dtype == torch.float32
    assert store.features["image"].shape == (3, 8)
    assert store.features["image"].dtype == dtype
    assert store.dim == 8
    assert not (tmp_path / "s.partial").exists()
    # not normalised
    assert (store.texts([0, 1]).norm(dim=1) - 1).abs().min() > 1e-3


def test_store__is_opened_not_made_again(tmp_path):
    model = Teacher()
    first = make(tmp_path / "s", model=model)
    model.encoded = {"image": 0, "text": 0}
    again = make(tmp_path / "s", model=model)
    assert model.encoded == {"image": 0, "text": 0}
    assert again.header == first.header
    # a data set in another language with the same English side is the same data
    make(tmp_path / "s", triplets("de"), model)
    opened = TeacherFeatureStore.open(tmp_path / "s", model=model, verify=True)
    assert torch.equal(opened.texts([2]), first.texts([2]))


def test_store__of_another_model_or_data_is_refused(tmp_path):
    path = tmp_path / "s"
    store = make(path)
    refused("holds features with model", make, path, model=Teacher(1))
    data = triplets(english=("dog", "cat", "tree", "house", "moon"))
    refused("holds features with data", make, path, data)
    refused("holds features with data", make, path, triplets(pictures="abd"))
    refused("holds features with pictures", make, path, triplets(seed=1))
    # whoever has the store needs no pictures
    assert make(path, without_images(triplets())).header == store.header
    refused("holds features with dtype", make, path, dtype="float16")
    refused("another image tower", TeacherFeatureStore.open, path, model=Teacher(1))
    refused("other data", TeacherFeatureStore.open, path, data="0" * 32)
    student = Teacher(0)
    with torch.no_grad():
        student.token.weight += 1
    refused("another text tower", store.check_model, student)
    store.check_model(student, ["image"])


def test_store__of_random_pictures_is_continued_and_opened(tmp_path):
    class Drawn(Triplets):
        def __getitem__(self, index):
            image = torch.from_numpy(np.random.default_rng().normal(size=(3, 8, 8)))
            return image.float(), self.text(index)

    data = with_facts(
        make_image_text_dataset(Drawn()),
        {"image_id": [3, 3, 1, 1, 2], "text_id": [4, 3, 2, 1, 0]},
    )
    store = make(tmp_path / "s", data)
    assert store.header["pictures"] == "random"
    again = make(tmp_path / "s", data)
    assert torch.equal(again.images([1]), store.images([1]))


def test_store__is_verified_when_it_is_opened_again(tmp_path):
    path = tmp_path / "s"
    store = make(path)
    file = path / "image_features.npy"
    whole = bytearray(file.read_bytes())
    whole[140] ^= 1
    file.write_bytes(whole)
    again = pickle.loads(pickle.dumps(store))  # not read a second time
    assert again.features["text"].shape == (5, 8)
    refused(r"image_features\.npy is damaged", make, path)


def test_store__of_equal_ids_with_different_content_is_refused(tmp_path):
    data = with_facts(triplets(), {"text_id": [0, 0, 1, 2, 3]})
    refused("Samples 0 and 1 have the text id 0", make, tmp_path / "s", data)
    data = with_facts(triplets(), {"image_id": [0, 0, 0, 2, 3]})
    refused("different pictures", make, tmp_path / "s", data)


@pytest.mark.parametrize("after", [1, 4, 6])
def test_store__continues_where_it_was_stopped(tmp_path, after):
    calls = []

    class Stopped(Teacher):
        def stop(self):
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt

        def encode_image(self, image, normalize=True):
            self.stop()
            return super().encode_image(image, normalize)

        def encode_text(self, text, normalize=True):
            self.stop()
            return super().encode_text(text, normalize)

    path = tmp_path / "s"
    flush = mock.patch("avalanche_clip.benchmarks.teacher.precompute._FLUSH", 1)
    with flush, pytest.raises(KeyboardInterrupt):
        precompute_teacher_features(Stopped(), triplets(), path, batch_size=1)
    assert not path.exists()
    refused("holds features with model", make, path, model=Teacher(5), batch_size=1)
    model = Teacher()
    store = make(path, model=model, batch_size=1)
    assert sum(model.encoded.values()) == 8 - (after - 1)
    whole = make(tmp_path / "t", batch_size=1)
    assert store.header["files"] == whole.header["files"]


def test_store__refuses_bad_options_and_values(tmp_path):
    refused("dtype=", make, tmp_path / "s", dtype="int8")
    refused("batch_size=0", make, tmp_path / "s", batch_size=0)
    refused("images were left out", make, tmp_path / "s", without_images(triplets()))
    broken = Teacher()
    with torch.no_grad():
        broken.image_proj.weight.mul_(1e6)
    half = {"model": broken, "dtype": "float16"}
    refused("not finite in float16", make, tmp_path / "u", **half)


def test_store__survives_pickling_and_copies_without_its_arrays(tmp_path):
    store = make(tmp_path / "s")
    column = store.column("text", [0, 4])
    data = pickle.dumps(column)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[1], column[1])
    assert copy.deepcopy(store) is store
    loose = TeacherFeatureStore({"text": np.ones((2, 3), dtype=np.float32)})
    assert torch.equal(pickle.loads(pickle.dumps(loose)).texts([1]), torch.ones(1, 3))


# ---------------------------------------------------------------- attaching
def two_languages():
    train = {"en": triplets(), "de": triplets("de", 100)}
    return multilingual_benchmark(
        train, test={"en": triplets("en", 200), "de": triplets("de", 300)}
    )


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches__carry_the_features_of_their_samples(tmp_path, images, dtype):
    model = Teacher()
    store = precompute_teacher_features(model, triplets(), tmp_path / "s", dtype=dtype)
    benchmark = attach_teacher_features(two_languages(), store, images=images)
    prepared = prepare_benchmark(benchmark, model)
    assert prepared.languages == ("en", "de")
    model.encoded = {"image": 0, "text": 0}
    german = prepared.train_stream[1].dataset
    part = german.subset([4, 0, 3]).concat(german.subset([1]))
    batch, _, task = next(iter(DataLoader(part, 4, collate_fn=part.collate_fn)))
    assert torch.equal(batch["teacher_image"], store.images([20, 30, 10, 30]))
    assert torch.equal(batch["teacher_text"], store.texts([0, 4, 1, 3]))
    assert batch["teacher_text"].dtype == batch["teacher_image"].dtype == torch.float32
    assert len(batch) == 4 and task.tolist() == [0] * 4
    assert batch["image"].shape == ((4, 3, 8, 8) if images else (4, 0))
    assert model.encoded == {"image": 0, "text": 0}
    pairs = german._flat_data
    while hasattr(pairs, "_datasets"):
        pairs = pairs._datasets[0]
    assert (pairs.pairs.decoded == 0) is not images
    test = prepared.test_stream[0].dataset
    assert "teacher_text" not in test._data_attributes and test[0][0].shape == (3, 8, 8)


def test_attaching__works_on_prepared_data_and_chosen_kinds(tmp_path):
    model = Teacher()
    store = make(tmp_path / "s", model=model)
    prepared = prepare_benchmark(two_languages(), model)
    more = attach_teacher_features(prepared, store, streams=["test"], kinds=["image"])
    test = more.test_stream[1].dataset
    batch, *_ = test.collate_fn([test[0], test[2]])
    assert torch.equal(batch["teacher_image"], store.images([30, 10]))
    assert "teacher_text" not in batch
    with pytest.raises(ValueError, match="prepared for a model"):
        attach_teacher_features(prepared, store, images=False)
    single = attach_teacher_features(triplets("de"), store)
    assert len(single) == 5 and hasattr(single, "teacher_text")


def test_attaching__rows_of_one_picture_are_merged_without_seeing_it(tmp_path):
    model = Teacher()
    store = make(tmp_path / "s", model=model)

    def stored(batch):
        normal = torch.nn.functional.normalize
        texts = normal(batch["teacher_text"], dim=1)
        return CLIPOutput(normal(batch["teacher_image"], dim=1), texts, torch.ones(()))

    for streams, images in (("train", "test"), False), (("test",), True):
        data = two_languages()
        data = attach_teacher_features(data, store, streams=streams, images=images)
        test = prepare_benchmark(data, model).test_stream[1].dataset
        bank = embed(model, test, encode=stored, batch_size=2)
        assert len(bank.image_features) == 3 and len(bank.text_features) == 5
        assert bank.owner.tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2]]


def test_attaching__refuses_what_does_not_belong_together(tmp_path):
    store = make(tmp_path / "s")
    far = with_facts(triplets("de"), {"text_id": [4, 3, 2, 1, 77]})
    refused(r"1 of 5 text ids .*\[77\]", attach_teacher_features, far, store)
    shifted = with_facts(triplets("de"), {"text_id": [0, 1, 2, 3, 4]})
    refused("its English caption 'dog'", attach_teacher_features, shifted, store)
    attach_teacher_features(shifted, store, check=0)
    with pytest.raises(ValueError, match="its picture 'x'"):
        attach_teacher_features(triplets("de", pictures="abx"), store)
    swapped = triplets("de", english=("dog", "cat", "tree", "sun", "house"))
    refused("'sun'", attach_teacher_features, swapped, store, check=None)
    for options, message in (
        ({"kinds": "image"}, "kinds"),
        ({"kinds": ["sound"]}, "kinds"),
    ):
        refused(message, attach_teacher_features, triplets(), store, **options)
    with pytest.raises(ValueError, match="'valid'"):
        attach_teacher_features(two_languages(), store, streams=["valid"])


def test_names_and_captions__may_be_paths_and_lists(tmp_path):
    class Named(Triplets):
        def english(self, index):
            return [super().english(index), "further"]

        def image_name(self, index):
            return Path(super().image_name(index))

    plain = triplets()
    store = make(tmp_path / "s", plain)
    named = make_image_text_dataset(Named(), sample_ids=np.arange(5))
    named = with_facts(named, {n: getattr(plain, n) for n in ("image_id", "text_id")})
    make(tmp_path / "s", named)
    attach_teacher_features(named, store)


def test_ids__come_from_facts_or_sample_ids():
    plain = make_image_text_dataset(Triplets(), sample_ids=np.arange(5) + 7)
    assert teacher_ids(plain, "text").tolist() == [7, 8, 9, 10, 11]
    parallel = multilingual_benchmark({"en": plain, "de": plain})
    for experience in parallel.train_stream:
        assert teacher_ids(experience.dataset, "image").tolist() == [7, 8, 9, 10, 11]


# ----------------------------------------------------------- released files
def test_released_features__may_share_rows_between_lines(tmp_path):
    np.save(tmp_path / "texts.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    (tmp_path / "line2idx.json").write_text(json.dumps({"0": 1, "1": 0, "3": 1}))
    rows = read_line_rows(tmp_path / "line2idx.json", 5)
    assert rows.tolist() == [1, 0, -1, 1, -1]
    store = TeacherFeatureStore.from_released(tmp_path / "texts.npy", None, rows)
    assert store.texts([0, 3, 1])[:, 0].tolist() == [3, 3, 0]
    assert pickle.loads(pickle.dumps(store)).texts([3])[0, 0] == 3
    refused("not known", store.check_model, Teacher())
    for wrong in (2, 9, -1):
        refused("not in the store", store.texts, [wrong])
    refused("no image features", store.images, [0])
    with pytest.raises(ValueError, match="beyond"):
        TeacherFeatureStore.from_released(tmp_path / "texts.npy", None, [2])
    refused("there are 2", read_line_rows, tmp_path / "line2idx.json", 2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "no features"),
        ({"sound": np.ones((1, 2), np.float32)}, "kinds of features"),
        (
            {"text": np.ones((1, 2), np.float32), "image": np.ones((1, 3), np.float32)},
            "one width",
        ),
    ],
)
def test_arrays__must_fit_together(features, message):
    refused(message, TeacherFeatureStore, features)
