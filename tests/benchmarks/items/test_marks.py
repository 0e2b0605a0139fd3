"""Marks of captions and pictures, and that evaluation goes by them."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.marks import (
    MarkedPictures,
    caption_marks,
    picture_digest,
    picture_marks,
)
from avalanche_clip.evaluation.loop import embed, evaluate_retrieval
from avalanche_clip.evaluation.metrics import RetrievalMetric
from avalanche_clip.models.images.transforms import to_rgb
from avalanche_clip.training.templates import ContrastiveTemplate
from tests.common.test_pictures import key, png
from tests.helpers import WORDS, StubTransform, build, quiet_evaluator, stub_model


def equal(marks):
    """Which of some marks equal the first."""
    return (marks == marks[0]).all(1).tolist()


def test_captions__the_whole_string_counts():
    long = "a" * 500
    marks = caption_marks([long, long, long + "b", "A" * 500, "", "\ud800", "a\u0301"])
    assert marks.dtype == torch.int64 and marks.shape == (7, 2)
    assert equal(marks) == [True, True, False, False, False, False, False]


def test_captions__of_token_ids_all_but_the_padding_counts():
    rows = [[5, 9], [5, 9, 0, 0], [5, 9, 0, 7], [5], [9, 5]]
    marks = caption_marks([torch.tensor(row) for row in rows])
    assert equal(marks) == [True, True, False, False, False]
    narrow = caption_marks([torch.tensor([5, 9], dtype=torch.int32)])
    assert torch.equal(narrow[0], marks[0])
    other = caption_marks([torch.tensor([5, 7, 7]), torch.tensor([5])], pad_id=7)
    assert equal(other) == [True, True]


def one_picture(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_pictures__content_counts(mode):
    picture = one_picture(mode)
    same = picture_digest(picture)
    assert same == picture_digest(picture.copy())
    assert same != picture_digest(picture.transpose(Image.Transpose.ROTATE_180))
    assert same != picture_digest(picture.resize((5, 5)))
    assert same != picture_digest(picture.convert("F"))


def test_pictures__palette_key_shape_and_type_count():
    left, right = (Image.new("P", (2, 2)) for _ in range(2))
    left.putpalette([1, 2, 3])
    right.putpalette([1, 2, 4])
    assert picture_digest(left) != picture_digest(right)
    keyed, turned = left.copy(), left.copy()
    keyed.info["transparency"] = 0
    turned.getexif()[0x0112] = 6  # how the camera was held
    assert len({picture_digest(image) for image in (left, keyed, turned)}) == 3
    tensor = torch.arange(12.0)
    digests = {
        picture_digest(value)
        for value in (
            tensor.view(3, 2, 2),
            tensor.view(3, 2, 2).clone(),
            tensor.view(3, 4, 1),
            tensor.view(3, 2, 2).double(),
            tensor.view(3, 2, 2).half(),
            tensor.view(3, 2, 2).permute(0, 2, 1),
            tensor.view(3, 2, 2) > 1,
            tensor.numpy(),
        )
    }
    assert len(digests) == 7
    assert picture_digest("cat.png") is None


@pytest.mark.parametrize("bits", [2, 4])
def test_marked__lazily_opened_pictures_become_the_same_pixels(bits, tmp_path):
    path = tmp_path / "key.png"
    # A grey PNG of few bits whose first grey counts as transparent.
    row = {2: b"\x5a", 4: b"\x12\x12"}[bits]
    path.write_bytes(png(4, 1, bits, 0, [row], key(1)))
    direct = torch.from_numpy(np.array(to_rgb(Image.open(path))))
    marked = MarkedPictures(lambda image: torch.from_numpy(np.array(to_rgb(image))))
    assert torch.equal(marked(Image.open(path)), direct)
    assert (direct == 255).any() and (direct != 255).any()


def test_marked__describes_itself_as_the_transform_inside_and_marks_no_raw_tensor():
    marked = MarkedPictures(StubTransform())
    raw = torch.zeros(2)
    result = marked(raw)
    assert torch.equal(result, raw) and not hasattr(raw, "picture_digest")
    assert marked.deterministic and repr(marked) == repr(marked.transform)
    assert not MarkedPictures(lambda image: image).deterministic
    for twin in (copy.deepcopy(marked), pickle.loads(pickle.dumps(marked))):
        assert twin.deterministic
    assert picture_marks([result, raw]) is None
    assert picture_marks([result, result]).shape == (2, 2)


# ------------------------------------------------------------ in evaluation
class Items(list):
    """Map-style pairs."""


class Perfect(torch.nn.Module):
    """Knows each picture by its level and each text by its first letter."""

    def __init__(self):
        super().__init__()
        self.tokenizer = stub_model().tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def transform(self, train):
        return lambda image: torch.as_tensor(np.array(image, np.float32)) / 255

    def forward(self, batch):
        levels = (batch["image"].flatten(1).amax(1) * 255).round().long()
        letters = batch["text"][:, 1] - 3
        return type(
            "Output",
            (),
            {
                "image_features": F.one_hot(levels, 256).float(),
                "text_features": F.one_hot(letters, 256).float(),
            },
        )


def prepared(pairs, model, **options):
    """The test data of a benchmark of these pairs, and the benchmark."""
    data = make_image_text_dataset(
        Items(pairs),
        sample_ids=np.arange(len(pairs)),
        timestamps=np.zeros(len(pairs)),
        **options,
    )
    train = make_image_text_dataset(
        Items(pairs),
        sample_ids=1000 + np.arange(len(pairs)),
        timestamps=np.zeros(len(pairs)),
        **options,
    )
    benchmark = time_stamped_benchmark(train, boundaries=[], test=data)
    benchmark = prepare_benchmark(benchmark, model)
    return benchmark.test_stream[0].dataset, benchmark


def level(value, side=2):
    return Image.new("L", (side, side), value)


def noise(number):
    generator = torch.Generator().manual_seed(number)
    return torch.rand(3, 8, 8, generator=generator)


def metric_values(model, benchmark, **options):
    """What the metric of a strategy finds on the test stream."""
    metric = RetrievalMetric(**options)
    strategy = build(
        ContrastiveTemplate, model, evaluator=quiet_evaluator([metric]), eval_mb_size=3
    )
    strategy.eval(benchmark.test_stream)
    return metric.stream_results["test"][0]


AFTER_THE_CUT = [f"abcd{a}{b}" for a in WORDS[:3] for b in WORDS[:4]]
UNKNOWN_WORDS = [str(number) for number in range(12)]
TOKEN_IDS = [torch.tensor([1, 4, 5, 6, 7, 2, n, 2]) for n in range(3, 15)]


class CutTokens(torch.nn.Module):
    """A stub that looks at the first five token ids only."""

    def __init__(self):
        super().__init__()
        self.stub = stub_model()
        self.tokenizer, self.transform = self.stub.tokenizer, self.stub.transform

    def forward(self, batch):
        batch = batch.copy()
        batch["text"] = batch["text"][:, :5]
        return self.stub(batch)


@pytest.mark.parametrize(
    ("captions", "model"),
    [(AFTER_THE_CUT, stub_model), (UNKNOWN_WORDS, stub_model), (TOKEN_IDS, CutTokens)],
    ids=["after the cut", "unknown words", "token ids"],
)
def test_captions_alike_to_the_model__remain_captions_of_their_own(captions, model):
    model = model()
    data, _ = prepared([(noise(n), text) for n, text in enumerate(captions)], model)
    bank = embed(model, data, batch_size=5)
    assert bank.owner.tolist() == [[n, n] for n in range(12)]
    found = evaluate_retrieval(model, data, batch_size=5)
    # all texts are encoded alike: nothing but chance, which a tie counts as wrong
    assert found["text_to_image_R@1"] == pytest.approx(1 / 12)
    assert found["image_to_text_R@1"] == 0 and found["image_to_text_tie_share"] == 1


def repeated(kind):
    """Three pictures, one row for each of their captions."""
    rows = [(9, "ja"), (9, "jb"), (4, "ea"), (4, "eb"), (4, "ec"), (2, "ca"), (9, "jc")]
    make = {
        "new objects": level,
        "one object": {k: level(k) for k in (9, 4, 2)}.__getitem__,
        "tensors": lambda k: torch.full((2, 2), k, dtype=torch.uint8),
        "palette": lambda k: level(k).convert("P"),
    }[kind]
    return [(make(number), text) for number, text in rows]


@pytest.mark.parametrize("kind", ["new objects", "one object", "tensors", "palette"])
@pytest.mark.parametrize("batch_size", [2, 7])
def test_repeated_pictures__a_perfect_encoder_finds_everything(kind, batch_size):
    model = Perfect()
    data, benchmark = prepared(repeated(kind), model)
    bank = embed(model, data, batch_size=batch_size)
    assert len(bank.image_features) == 3 and len(bank.text_features) == 7
    found = evaluate_retrieval(model, data, batch_size=batch_size)
    assert found["mean_R@1"] == 1
    assert found["image_to_text_mean_rank"] == found["text_to_image_mean_rank"] == 1


def test_repeated_pictures__equal_one_row_with_all_captions():
    model = stub_model()
    pictures = [noise(n) for n in range(4)]
    apart = [(pictures[n % 4], WORDS[n] + WORDS[n % 7]) for n in range(12)]
    whole = [(pictures[n], [apart[k][1] for k in range(n, 12, 4)]) for n in range(4)]
    data, benchmark = prepared(apart, model)
    other, _ = prepared(whole, model)
    expected = evaluate_retrieval(model, other)
    assert evaluate_retrieval(model, data, batch_size=5) == pytest.approx(expected)
    assert metric_values(model, benchmark) == pytest.approx(expected)
    apart_found = metric_values(model, benchmark, deduplicate=False)
    assert apart_found != pytest.approx(expected)


def test_pictures_alike_to_the_model__remain_pictures_of_their_own():
    class Cropping(type(stub_model())):
        def transform(self, train):
            return lambda image: image[:, :8, :8]

    model = Cropping()
    pictures = [torch.cat([noise(0), noise(n)], dim=2) for n in range(12)]
    pairs = [(p, WORDS[n]) for n, p in enumerate(pictures)]
    data, benchmark = prepared(pairs, model)
    assert len(embed(model, data).image_features) == 12
    found = evaluate_retrieval(model, data)
    assert found["text_to_image_R@1"] == 0
    assert found["image_to_text_R@1"] == pytest.approx(1 / 12)
    assert metric_values(model, benchmark) == pytest.approx(found)


def test_languages__equal_captions_are_two_texts_that_share_their_pictures():
    model = Perfect()
    rows = [(9, "x"), (4, "x"), (2, "c")]
    data, _ = prepared(
        [(level(k), text) for k, text in rows], model, languages=[0, 1, 1]
    )
    bank = embed(model, data)
    assert len(bank.text_features) == 3
    assert bank.owner.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]


def test_marks__workers_and_parts_of_batches_keep_them_and_training_has_no_pictures():
    model = stub_model()
    pairs = [(noise(n % 3), ["a", WORDS[n]]) for n in range(6)]
    data, benchmark = prepared(pairs, model)
    batches = [
        next(iter(DataLoader(data, 6, collate_fn=data.collate_fn, num_workers=count)))
        for count in (0, 1)
    ]
    first, second = (batch[0] for batch in batches)
    assert torch.equal(first["image_key"], second["image_key"])
    assert torch.equal(first["caption_key"], second["caption_key"])
    assert equal(first["image_key"]) == [True, False, False] * 2
    parts = first.split(4)
    for name in ("image_key", "caption_key"):
        assert torch.equal(torch.cat([part[name] for part in parts]), first[name])
    assert all(len(p["caption_key"]) == len(p["text"]) for p in parts)
    train = benchmark.train_stream[0].dataset
    batch = train.collate_fn([train[n] for n in range(6)])[0]
    assert "image_key" not in batch and "caption_key" not in batch
