"""The small MIRB of emoji: what it asks is what it shows, in the released format."""

import json
import os
from collections import Counter

import numpy as np
import pytest

from avalanche_clip.benchmarks.datasets import (
    EMOJI_STEPS,
    EmojiImages,
    MIRBDataset,
    emoji_mirb,
    load_emoji_table,
    write_emoji_mirb,
)
from avalanche_clip.evaluation.suites.multi_image import counted_class, patch_orders
from tests.scripts import load_script

TABLE = load_emoji_table()
SHEETS = {style: EmojiImages(style) for style in ("noto", "openmoji", "twemoji")}


@pytest.fixture(scope="module")
def questions():
    return MIRBDataset(emoji_mirb())


@pytest.fixture(scope="module")
def known():
    """Pixels -> styles and names of the drawings."""
    found = {}
    for style, drawings in SHEETS.items():
        for k, name in enumerate(TABLE.names):
            found.setdefault(np.asarray(drawings[k]).tobytes(), []).append(
                (style, name)
            )
    return found


def tiles(picture, size=48):
    pixels = np.asarray(picture)
    rows, columns = (n // size for n in pixels.shape[:2])
    grid = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return [tile.tobytes() for row in grid for tile in row]


def pictures(sample):
    return [sample.picture(k) for k in range(len(sample.images))]


def test_questions__of_all_steps_and_answers_in_balance(questions):
    subsets = questions.subsets()
    counts = {name: len(samples) for name, samples in subsets.items()}
    assert counts == {
        **{"image_jigsaw": 48, "count": 48, "attribute": 96, "visual_chain": 24}
    }
    for samples in subsets.values():
        steps = Counter(sample.extra["step"] for sample in samples)
        assert set(steps) == {step.label for step in EMOJI_STEPS}
        assert len(set(steps.values())) == 1
    answers = {n: Counter(s.answer for s in part) for n, part in subsets.items()}
    assert answers["attribute"] == {"yes": 48, "no": 48}
    assert answers["image_jigsaw"] == dict.fromkeys("ABCD", 12)
    for name in ("count", "visual_chain"):
        assert max(answers[name].values()) <= 0.3 * counts[name]


def test_attribute__shows_what_it_says(questions, known):
    for sample in questions.subsets()["attribute"]:
        shown = [known[np.asarray(p).tobytes()] for p in pictures(sample)]
        assert [found[0][0] for found in shown] == ["twemoji", "noto", "openmoji"]
        names = set.intersection(*({name for _, name in found} for found in shown))
        assert bool(names) == (sample.answer == "yes")


def test_count__is_that_of_the_sheets(questions, known):
    for sample in questions.subsets()["count"]:
        name, white = counted_class(sample.question), b"\xff" * (48 * 48 * 3)
        cells = [tile for picture in pictures(sample) for tile in tiles(picture)]
        assert len(cells) == 8
        named = [{n for _, n in known[c]} for c in cells if c != white]
        assert sum(name in found for found in named) == int(sample.answer)


def test_jigsaw__the_gold_puts_the_drawing_together(questions, known):
    for sample in questions.subsets()["image_jigsaw"]:
        first, *patches = map(np.asarray, pictures(sample))
        orders = patch_orders(sample)
        assert len({tuple(order) for order in orders.values()}) == 4
        built = {}
        for letter, order in orders.items():
            a, b, c, d = (patches[k] for k in order)
            whole = np.block([[[a], [b]], [[c], [d]]])
            built[letter] = known.get(whole.tobytes())
        right = [letter for letter, found in built.items() if found]
        assert right == [sample.answer]
        (_, name), *_ = known[first.tobytes()]
        assert ("twemoji", name) in built[sample.answer]


def test_chain__follows_from_the_equations(questions, known):
    for sample in questions.subsets()["visual_chain"]:
        equations = [
            [known[tile][0][1] for tile in tiles(picture)]
            for picture in pictures(sample)
        ]
        value = {f"keycap: {digit}": digit for digit in range(10)}
        for _ in equations:
            for left, equals, *right in equations:
                assert equals == "heavy equals sign"
                if all(name in value for name in right[::2]):
                    value[left] = sum(value[name] for name in right[::2])
        asked = sample.question.split('"')[1]
        assert value[asked] == int(sample.answer)


def test_files__are_those_of_the_released_format(tmp_path, questions, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of 700 files
    folder = write_emoji_mirb(tmp_path / "mirb")
    rows = json.loads((folder / "count.json").read_text(encoding="utf-8"))
    assert list(rows[0])[:3] == ["questions", "answers", "images"]
    assert rows[3]["images"][0].startswith("images/count/")
    read = MIRBDataset(folder, ["attribute", "count", "image_jigsaw", "visual_chain"])
    assert len(read) == len(questions)
    for left, right in zip(read, emoji_mirb(), strict=True):
        assert (left.id, left.question, left.answer, left.extra) == (
            *(right.id, right.question, right.answer, right.extra),
        )
        assert left.picture(0).tobytes() == right.picture(0).tobytes()
    assert set(MIRBDataset(folder).missing) == {
        *("codeu", "plot_code", "analogy", "3d_scene", "food", "sightseeing", "arxiv")
    }


def test_choice__is_that_of_the_tool():
    tool = load_script("tools/build_emoji_mirb.py")
    stored = json.loads(tool.PATH.read_text(encoding="utf-8"))
    assert stored == {"questions": tool.questions()}
