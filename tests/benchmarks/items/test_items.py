"""Items, batches and collation."""

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import DataAttribute
from PIL import Image
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks import (
    CorruptSampleError,
    FieldCollate,
    ImageTextBatch,
    attribute_array,
    find_corrupt_samples,
    make_image_text_dataset,
)
from avalanche_clip.benchmarks.items.items import concatenate, item_fields
from avalanche_clip.common.pictures import read_picture
from tests.benchmarks.small_streams import (
    CharTokenizer,
    CountedPairs,
    ListedPairs,
    counted_dataset,
    ids_of,
)
from tests.common.test_pictures import WHOLE
from tests.refused import refused

IMAGE = torch.zeros(3, 4, 4)


def collate_of(dataset, tokenizer=None):
    return FieldCollate(dataset.collate_fn.fields, tokenizer or CharTokenizer())


def batch_of(items, **options):
    dataset = make_image_text_dataset(ListedPairs(items), **options)
    return collate_of(dataset)([dataset[i] for i in range(len(items))])


# --- building -----------------------------------------------------------------


def test_make_image_text_dataset__item_holds_facts_in_order_and_task_label_last():
    dataset = make_image_text_dataset(
        CountedPairs(3),
        sample_ids=[10, 11, 12],
        targets=[4, 5, 6],
        languages=[1, 1, 2],
        timestamps=[0.5, 1.5, 2.5],
        task_labels=[7, 8, 9],
        in_item=("timestamp", "language", "targets", "sample_id"),
    )
    image, *rest = dataset[1]
    assert image[0, 0, 0] == 1
    assert rest == ["1", 11, 5, 1, 1.5, 8]
    fields = ("image", "text", "sample_id", "targets", "language", "timestamp")
    assert dataset.collate_fn.fields == (*fields, "targets_task_labels")
    assert item_fields(dataset) == dataset.collate_fn.fields


def test_make_image_text_dataset__facts_out_of_the_item_stay_attributes():
    dataset = counted_dataset([3.0, 4.0], in_item=(), task_labels=None)
    assert dataset.collate_fn.fields == ("image", "text")
    assert len(dataset[0]) == 2
    assert attribute_array(dataset, "timestamp").tolist() == [3.0, 4.0]
    batch, labels, task = collate_of(dataset)([dataset[0], dataset[1]])
    assert labels.tolist() == [0, 1] and task.tolist() == [0, 0]
    assert "timestamp" not in batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_ids": [1, 2]}, "sample_ids of shape"),
        ({"sample_ids": [1, 2, 2]}, "repeat .*2"),
        ({"sample_ids": [0.0, 1.0, 2.0]}, "integers"),
        ({"sample_ids": np.array([0, 1, 2**63], np.uint64)}, "2\\*\\*63"),
        ({"targets": ["a", "b", "c"]}, "integer codes"),
        ({"languages": ["en", "de", "fr"]}, "integer codes"),
        ({"targets": [[0], [1], [2]]}, "targets of shape"),
        ({"timestamps": [0.0, 1.0]}, "timestamps of shape"),
        ({"timestamps": [True, False, True]}, "timestamps have dtype bool"),
        ({"timestamps": ["soon", "1970-01-01", None]}, "'soon' is no ISO date"),
        ({"task_labels": [0, 1]}, "task_labels of shape"),
        ({"in_item": ("sample_id", "colour")}, "colour"),
        ({"empty_captions": "ignore"}, "empty_captions"),
    ],
)
def test_make_image_text_dataset__bad_columns_raise(options, message):
    refused(message, make_image_text_dataset, CountedPairs(3), **options)


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us"])
def test_timestamps__datetime64_keeps_far_times_and_marks_missing_ones(unit):
    # Nanoseconds would overflow for the first two; NaT is no year 1677.
    times = np.array(["0001-01-01", "3000-01-01", "NaT", "1970-01-02"], f"M8[{unit}]")
    seconds = attribute_array(counted_dataset(times), "timestamp")
    assert seconds[0] == -62135596800.0 and seconds[1] == 32503680000.0
    assert np.isnan(seconds[2]) and seconds[3] == 86400.0


def test_timestamps__nanoseconds_keep_microseconds():
    times = np.array(["1970-01-01T00:00:00.000001"], "M8[ns]")
    assert attribute_array(counted_dataset(times), "timestamp")[0] == 1e-6


# --- reading ------------------------------------------------------------------


class PictureFiles(ListedPairs):
    """Pictures read from files, each with one caption."""

    def __getitem__(self, index):
        return read_picture(self.items[index]), "a picture"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "kinds", "cause"),
    [
        (None, (FileNotFoundError, ValueError), "does not exist"),
        (b"", (ValueError,), "empty file"),
        (WHOLE[:200], (ValueError,), ".*list_of_positions_to_keep"),
        (b"version https://git-lfs.github.com/spec/v1\n", (ValueError,), "Git LFS"),
    ],
)
def test_item__errors_are_those_of_all_files(content, kinds, cause, workers, tmp_path):
    path = tmp_path / "cat.png"
    if content is not None:
        path.write_bytes(content)
    dataset = make_image_text_dataset(PictureFiles([path]))
    loader = DataLoader(dataset, num_workers=workers)
    message = rf"(?s)sample_id 0.*cat\.png.*{cause}"
    with pytest.raises(CorruptSampleError, match=message) as caught:
        next(iter(loader))
    assert all(isinstance(caught.value, kind) for kind in (*kinds, RuntimeError))


@pytest.mark.parametrize("error", [IndexError, KeyError, OSError, RuntimeError])
def test_item__reader_error_ends_no_loop_silently(error):
    class Failing(CountedPairs):
        def __getitem__(self, index):
            if index == 1:
                raise error("inside the reader")
            return super().__getitem__(index)

    dataset = make_image_text_dataset(Failing(3))
    refused("inside the reader", list, dataset, error=CorruptSampleError)
    assert [p for p, _ in find_corrupt_samples(dataset)] == [1]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (5, TypeError, "is 5, a int"),
        (None, TypeError, "is None"),
        (["a", b"b"], TypeError, "a bytes"),
        ([], ValueError, "no caption"),
        ("", ValueError, "empty caption"),
        ("  \n", ValueError, "empty caption"),
        (["a", ""], ValueError, "empty caption"),
        (torch.zeros(3), TypeError, "float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), TypeError, "shape"),
        (torch.zeros(0, 3, dtype=torch.int64), ValueError, "no caption"),
    ],
)
def test_item__bad_captions_raise_and_are_listed(text, error, message):
    dataset = make_image_text_dataset(ListedPairs([(IMAGE, "fine"), (IMAGE, text)]))
    with pytest.raises(error, match=message):
        dataset[1]
    assert [p for p, _ in find_corrupt_samples(dataset)] == [1]


def test_item__empty_captions_can_be_kept():
    batch, _, _ = batch_of([(IMAGE, ""), (IMAGE, "a")], empty_captions="keep")
    assert batch["text"][:, 0].tolist() == [-1, ord("a")]


# --- collating ----------------------------------------------------------------


def test_collate__batch_layout():
    tokenizer = CharTokenizer()
    dataset = counted_dataset([0.0] * 3, targets=[5, 6, 7], languages=[2, 3, 4])
    items = [dataset[i] for i in (2, 0)]
    batch, labels, task = collate_of(dataset, tokenizer)(items)
    assert isinstance(batch, ImageTextBatch)
    assert batch["image"].dtype == torch.float32 and len(batch) == 2
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0]
    assert batch["sample_id"].tolist() == [2, 0] and batch["owner"].tolist() == [0, 1]
    assert labels.tolist() == [7, 5] and task.tolist() == [0, 0]
    for value in (batch["text"], batch["owner"], batch["sample_id"], labels, task):
        assert value.dtype == torch.int64
    # One call for the whole batch, with the language of each caption.
    assert tokenizer.calls == [(["2", "0"], [4, 2])]


def test_collate__several_captions_know_their_image():
    tokenizer = CharTokenizer()
    items = [(IMAGE, ["ab", "c"]), (IMAGE, "d"), (IMAGE, ("e", "f", "g"))]
    dataset = make_image_text_dataset(ListedPairs(items), languages=[8, 9, 10])
    batch, _, _ = collate_of(dataset, tokenizer)([dataset[i] for i in range(3)])
    assert batch["owner"].tolist() == [0, 0, 1, 2, 2, 2]
    assert tokenizer.calls == [(["ab", *"cdefg"], [8, 8, 9, 10, 10, 10])]


def test_collate__token_tensors_are_padded():
    rows = [torch.tensor([3, 4]), torch.tensor([[5, 6, 7], [8, 9, 1]])]
    dataset = make_image_text_dataset(ListedPairs([(IMAGE, row) for row in rows]))
    items = [dataset[0], dataset[1]]
    batch, _, _ = dataset.collate_fn(items)
    assert batch["text"].tolist() == [[3, 4, 0], [5, 6, 7], [8, 9, 1]]
    assert batch["owner"].tolist() == [0, 1, 1]
    padded, _, _ = collate_of(dataset)(items)
    assert padded["text"][0].tolist() == [3, 4, -1]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(IMAGE, "a"), (torch.zeros(3, 4, 5), "b")], "differ in shape.*4, 4.*4, 5"),
        ([(Image.new("RGB", (4, 4)), "a")], "no image transform.*prepare_benchmark"),
        ([(IMAGE, "a"), (IMAGE, torch.tensor([1]))], "1 of the 2 captions"),
        ([(IMAGE, torch.tensor([1])), (IMAGE, "a")], "1 of the 2 captions"),
    ],
)
def test_collate__what_does_not_fit_together_raises(items, message):
    refused(message, batch_of, items)


def test_collate__attribute_added_behind_its_back_raises():
    dataset = counted_dataset([0.0, 1.0])
    extra = DataAttribute([1, 2], "colour", use_in_getitem=True)
    wider = dataset.update_data_attribute("colour", extra)
    refused(r"has 5 elements, but 4.*prepare_benchmark", collate_of(wider), [wider[0]])


def test_collate__facts_that_are_no_numbers_raise():
    collate = FieldCollate(("image", "text", "country"), CharTokenizer())
    refused("'country' has dtype", collate, [(IMAGE, "a", "fr"), (IMAGE, "b", "de")])


@pytest.mark.parametrize("fields", [("text", "image"), ("image", "text", "owner"), ()])
def test_collate__fields_must_begin_with_image_and_text(fields):
    refused("must begin with", FieldCollate, fields)


# --- the batch ----------------------------------------------------------------


@pytest.fixture
def batch():
    items = [(torch.full((3, 2, 2), float(k)), ["x"] * (1 + k % 3)) for k in range(7)]
    return batch_of(items, targets=np.arange(7))[0]


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 7, 50])
def test_batch_split__keeps_every_image_with_its_captions(batch, chunks):
    parts = batch.split(chunks)
    assert len(parts) == min(chunks, 7)
    sizes = [len(part) for part in parts]
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
    for key in ("image", "text", "sample_id", "targets"):
        assert torch.equal(torch.cat([part[key] for part in parts]), batch[key])
    starts = np.cumsum([0, *sizes[:-1]])
    owner = torch.cat([part["owner"] + s for part, s in zip(parts, starts)])
    assert torch.equal(owner, batch["owner"])


def test_batch__behaves_like_a_tensor_where_stock_plugins_need_it(batch):
    assert len(batch) == 7 and batch.shape == (7, 3, 2, 2) and bool(batch)
    assert batch.device.type == "cpu"
    twins = (pickle.loads(pickle.dumps(batch)), copy.copy(batch), batch.copy())
    for twin in (*twins, batch.to("cpu")):
        assert isinstance(twin, ImageTextBatch) and twin.keys() == batch.keys()
        assert all(torch.equal(twin[key], batch[key]) for key in batch)
    assert len(ImageTextBatch()) == 0 and bool(ImageTextBatch())


def test_batch_to__type_changes_images_and_no_ids(batch):
    half = batch.to(torch.bfloat16)
    assert half["image"].dtype == torch.bfloat16
    assert {half[k].dtype for k in half if k != "image"} == {torch.int64}
    meta = batch.to("meta", torch.float16)
    assert meta["text"].device.type == "meta" and meta["text"].dtype == torch.int64


@pytest.mark.gpu
def test_batch_pin_memory__pins_all_tensors(batch):
    pinned = batch.pin_memory()
    assert isinstance(pinned, ImageTextBatch)
    assert all(value.is_pinned() for value in pinned.values())


# --- attributes ---------------------------------------------------------------


def random_tree(dataset, rng, depth):
    """Cut and join a data set at random."""
    for _ in range(depth):
        picks = rng.integers(0, len(dataset), rng.integers(1, 2 * len(dataset)))
        other = dataset.subset(picks.tolist())
        dataset = dataset.concat(other) if rng.random() < 0.5 else other
        if len(dataset) > 60:
            dataset = dataset.subset(rng.permutation(len(dataset))[:20].tolist())
    return dataset


@pytest.mark.parametrize("targets", [False, True])
def test_attribute_array__equals_iteration_on_any_tree(targets):
    rng = np.random.default_rng(3)
    for _ in range(25):
        first, second = (
            counted_dataset(
                rng.random(size),
                first_id=start,
                targets=rng.integers(0, 3, size) if targets else None,
                languages=rng.integers(0, 3, size),
                task_labels=start,
            )
            for size, start in ((9, 0), (5, 50))
        )
        tree = random_tree(first, rng, 3).concat(random_tree(second, rng, 3))
        tree = random_tree(tree, rng, 2)
        for name, attribute in tree._data_attributes.items():
            values = attribute_array(tree, name)
            assert values.shape == (len(tree),)
            assert values.tolist() == list(attribute)
        item = tree[len(tree) - 1]
        assert item[2] == attribute_array(tree, "sample_id")[-1]
        assert item[-1] == attribute_array(tree, "targets_task_labels")[-1]


def test_attribute_array__empty_and_unknown():
    dataset = counted_dataset([0.0, 1.0])
    assert attribute_array(dataset.subset([]), "timestamp").shape == (0,)
    empty = make_image_text_dataset(CountedPairs(0), sample_ids=[], timestamps=[])
    assert attribute_array(empty, "sample_id").shape == (0,)
    refused(r"no attribute 'targets'.*sample_id", attribute_array, dataset, "targets")


def test_attribute_array__sees_an_updated_attribute():
    dataset = counted_dataset([0.0, 1.0])
    updated = dataset.update_data_attribute("timestamp", np.array([8.0, 9.0]))
    assert attribute_array(updated, "timestamp").tolist() == [8.0, 9.0]
    assert attribute_array(dataset, "timestamp").tolist() == [0.0, 1.0]


def test_concatenate__skips_empty_parts_and_keeps_attributes():
    first, second = counted_dataset([1.0, 2.0]), counted_dataset([3.0], first_id=7)
    whole = concatenate([first.subset([]), first, second.subset([]), second])
    assert ids_of(whole) == [0, 1, 7]
    assert attribute_array(whole, "timestamp").tolist() == [1.0, 2.0, 3.0]
    assert whole.collate_fn.fields == first.collate_fn.fields


def test_concatenate__refuses_parts_with_other_facts_and_nothing():
    first = counted_dataset([1.0])
    with pytest.raises(ValueError, match="different facts"):
        concatenate([first, counted_dataset([1.0], first_id=3, targets=[1])])
    refused("nothing to concatenate", concatenate, [first.subset([])])
