"""The released layouts of MMVP and MMVP-VLM, and what is wrong with files."""

import numpy as np
import pytest

from avalanche_clip.benchmarks.datasets import (
    MMVP_PATTERNS,
    BlindEmoji,
    EmojiImages,
    MMVPDataset,
    MMVPVLMDataset,
    load_emoji_table,
)
from tests.benchmarks.datasets.mmvp_files import write_mmvp, write_table, write_vlm

VLM = ["Question ID", "Type", "Statement"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_mmvp(tmp_path_factory.mktemp("mmvp") / "root")


def colour(image):
    red, green, _ = np.asarray(image).reshape(-1, 3).mean(0)
    return round(red) + 256 * round(green / 64)


def test_vlm__pairs_patterns_and_statements(vlm):
    pairs = MMVPVLMDataset(vlm)
    assert len(pairs) == 135 and pairs.pair_ids == list(range(1, 136))
    names = list(MMVP_PATTERNS.values())
    assert pairs.patterns == [name for name in names for _ in range(15)]
    for place in (0, 60, 134):
        pair = pairs[place]
        first, second = 2 * place + 1, 2 * place + 2
        assert pair.pair_id == place + 1 and pair.pattern == names[place // 15]
        assert pair.statements == (f"it is number {first}", f"it is number {second}")
        assert [image.mode for image in pair.images] == ["RGB"] * 2
        assert [abs(colour(i) - n) <= 2 for i, n in zip(pair.images, (first, second))]


def test_vlm__other_spellings_and_orders_are_the_same_set(vlm, tmp_path):
    order = np.random.default_rng(0).permutation(270)
    types = list(MMVP_PATTERNS)
    types[6], types[7] = "Structural Characteristics", "Texts"
    write_vlm(tmp_path, folder="MMVP_VLM_Images", order=order, types=types)
    moved, pairs = MMVPVLMDataset(tmp_path), MMVPVLMDataset(vlm)
    assert moved.patterns == pairs.patterns and moved.statements == pairs.statements
    assert moved.labels != pairs.labels
    assert colour(moved[100].images[1]) == colour(pairs[100].images[1])


def test_vlm__missing_rows_leave_whole_pairs(vlm, tmp_path):
    (tmp_path / "MLLM_VLM Images").symlink_to(vlm / "MLLM_VLM Images")
    rows = [[33, "Presence", "b, c"], [2, "Orientation", "x"], [1, "Orientation", "a"]]
    write_table(tmp_path / "Questions.csv", VLM, [*rows, [34, "Presence", '"d"']])
    pairs = MMVPVLMDataset(tmp_path)
    assert pairs.pair_ids == [1, 17]
    assert pairs.statements == [("a", "x"), ("b, c", '"d"')]


@pytest.mark.parametrize(
    ("columns", "rows", "error", "message"),
    [
        (VLM, [[1, "Orientation", "a"]], ValueError, "question 1 has no partner"),
        (VLM, [[2, "State", "a"], [1, "Text", "b"]], ValueError, "'Text' and 'State'"),
        (VLM, [[1, "Colour", "a"], [2, "Color", "b"]], ValueError, "mean 'Color'"),
        (VLM, [[1, "Text", "a"], [1, "Text", "b"]], ValueError, "more than once"),
        (VLM, [["x", "Text", "a"]], ValueError, "a row holds"),
        (VLM, [[1, "Text", ""]], ValueError, "a row holds"),
        (VLM, [], ValueError, "no questions in"),
        (["id", *VLM[1:]], [[1, "Text", "a"]], ValueError, "no column 'Question ID'"),
        (VLM, [[1, "Text", "a"], [2, "Text", "b"]], FileNotFoundError, "Text/1.jpg"),
    ],
)
def test_vlm__refuses(tmp_path, columns, rows, error, message):
    write_table(tmp_path / "Questions.csv", columns, rows)
    with pytest.raises(error, match=message):
        MMVPVLMDataset(tmp_path)


def test_vlm__names_the_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Questions\.csv"):
        MMVPVLMDataset(tmp_path)


def test_mmvp__questions_as_released(chat):
    data = MMVPDataset(chat)
    assert len(data) == 300
    question = data[1]
    assert question[1:] == (
        "Is the wing open?",
        ("Open", "Closed, or shut"),
        "b",
        1,
        "Is the wing open? (a) Open (b) Closed, or shut",
    )
    assert colour(data[254].image) in range(253, 258)


def test_mmvp__corrections_are_four_and_recorded(chat):
    released, corrected = MMVPDataset(chat), MMVPDataset(chat, corrected=True)
    answers = [[item.answer for item in data] for data in (released, corrected)]
    other = [n for n, (a, b) in enumerate(zip(*answers, strict=True), 1) if a != b]
    assert other == [99, 100, 279, 280]
    assert answers[1] == ["a", "b"] * 49 + ["b", "a"] + ["a", "b"] * 89 + [
        *("b", "a"),
        *["a", "b"] * 10,
    ]
    assert released.labels.split()[0] == "released"
    assert corrected.labels.split()[0] == "corrected"
    assert released.labels.split()[1] == corrected.labels.split()[1]


def test_mmvp__other_files_are_told(tmp_path):
    data = MMVPDataset(write_mmvp(tmp_path / "few", 6))
    assert data.labels.startswith("other")
    with pytest.raises(ValueError, match="corrected=True is about"):
        MMVPDataset(tmp_path / "few", corrected=True)
    with pytest.raises(ValueError, match="corrected='yes'"):
        MMVPDataset(tmp_path / "few", corrected="yes")


@pytest.mark.parametrize(
    ("options", "answer"),
    [("(a) Open", "(a)"), ("(a) Open (b)", "(a)"), ("(a) x (b) y", "(c)")],
)
def test_mmvp__refuses_what_has_not_two_options(tmp_path, options, answer):
    columns = ["Index", "Question", "Options", "Correct Answer"]
    rows = [[n, "Which?", options, answer] for n in (1, 2)]
    write_table(tmp_path / "Questions.csv", columns, rows)
    with pytest.raises(ValueError, match="question 1 has the options"):
        MMVPDataset(tmp_path)


def test_blind_emoji__fifteen_pairs_of_each_group_no_drawing_twice():
    pairs, table = BlindEmoji(), load_emoji_table()
    assert [pairs.patterns.count(group) for group in table.groups] == [15] * 9
    rows = [row for pair in pairs.emoji_index for row in pair]
    assert len(set(rows)) == 270
    for place in (0, 77, 134):
        pair = pairs[place]
        a, b = pairs.emoji_index[place]
        assert table.group[a] == table.group[b]
        assert pair.pattern == table.groups[table.group[a]]
        assert pair.statements == (table.names[a], table.names[b])
        drawn = [np.asarray(image) for image in EmojiImages("twemoji", [a, b])]
        assert all((np.asarray(i) == d).all() for i, d in zip(pair.images, drawn))
