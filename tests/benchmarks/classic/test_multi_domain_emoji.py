import numpy as np
import pytest

from avalanche_clip.benchmarks import multi_domain_emoji
from avalanche_clip.benchmarks.classic.multi_domain_emoji import EmojiClasses
from avalanche_clip.benchmarks.datasets import load_emoji_table, validation_mask
from tests.benchmarks.small_streams import check_ids_differ, column, sizes_of
from tests.refused import refused

SIZES = [86, 327, 96, 73, 116, 41, 134, 62, 257]


@pytest.fixture(scope="module")
def benchmark():
    return multi_domain_emoji()


def count(benchmark, name):
    return sizes_of(benchmark.streams[name])


def test_domains__are_the_groups_of_the_emoji_after_2010(benchmark):
    table = load_emoji_table()
    assert [len(e.class_ids) for e in benchmark.train_stream] == SIZES
    assert sum(SIZES) == 1192 == len(benchmark.class_prompts)
    assert [e.domain for e in benchmark.train_stream] == list(table.groups)
    names = [n for e in benchmark.train_stream for n in e.class_names]
    assert set(names) == {n for n, s in zip(table.names, table.step) if s > 0}
    assert count(benchmark, "train") == [2 * n for n in SIZES]
    assert count(benchmark, "test") == SIZES
    assert check_ids_differ(benchmark) == 5733
    assert "light skin tone" in benchmark.train_stream[1].class_names  # Component


def test_reference__holds_what_the_shipped_models_know(benchmark):
    (known,) = benchmark.streams["reference"]
    (test,) = benchmark.streams["reference_test"]
    assert len(known.dataset) == 1438 and len(test.dataset) == 719
    assert known.class_ids == test.class_ids == tuple(range(1192, 1911))
    assert known.domain == "2010" and "2010" not in benchmark.class_prompts.domain_names
    table = load_emoji_table()
    expected = [n for n, s in zip(table.names, table.step) if s == 0]
    assert list(known.class_names) == expected
    assert known.dataset[0][1] == expected[0]
    assert len(known.class_prompts) == 1911


def test_items__show_the_named_emoji_in_the_right_style(benchmark):
    table = load_emoji_table()
    rows = np.flatnonzero((table.group == 3) & (table.step > 0))
    item = benchmark.test_stream[3].dataset[5]
    drawing = EmojiClasses(["twemoji"], rows)[5][0]
    assert list(item[0].getdata()) == list(drawing.getdata())
    assert item[1] == table.names[rows[5]]
    train = benchmark.train_stream[3].dataset
    assert train[0][1] == train[len(rows)][1]  # the other style
    assert list(train[0][0].getdata()) != list(train[len(rows)][0].getdata())


def test_validation__holds_out_one_drawing_of_a_hashed_fifth():
    benchmark = multi_domain_emoji(validation=True)
    table = load_emoji_table()
    held = validation_mask(table.ids, 0.2) & (table.step > 0)
    expected = [int(held[table.group == g].sum()) for g in range(9)]
    assert count(benchmark, "valid") == expected
    assert count(benchmark, "train") == [
        2 * n - k for n, k in zip(SIZES, expected, strict=True)
    ]
    for train, valid in zip(benchmark.train_stream, benchmark.streams["valid"]):
        # Another style shows each of them in training.
        seen = set(column(train).tolist())
        assert seen == set(train.class_ids)
        assert set(column(valid).tolist()) <= seen
    assert count(benchmark, "test") == SIZES


def test_order_shots_and_templates():
    order = [8, 7, 6, 5, 4, 3, 2, 1, 0]
    benchmark = multi_domain_emoji(order=order, shots=1, templates=["an emoji of {}."])
    assert [e.dataset_index for e in benchmark.train_stream] == order
    assert count(benchmark, "train") == SIZES[::-1]
    assert benchmark.train_stream[0].dataset[0][1].startswith("an emoji of ")


def test_styles_and_templates__one_string_or_a_generator():
    one = multi_domain_emoji(styles="noto", templates=(t for t in ("{}", "a {}")))
    assert count(one, "train") == SIZES
    assert one.class_prompts.templates(1191) == ("{}", "a {}")
    known = one.streams["reference"][0]
    assert known.templates == ("{}", "a {}")
    refused("unknown", multi_domain_emoji, styles="not")
    refused("also trained on", multi_domain_emoji, test_style="noto")
    refused("another style", multi_domain_emoji, styles=["openmoji"], validation=True)
