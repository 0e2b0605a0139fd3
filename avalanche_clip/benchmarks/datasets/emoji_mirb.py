"""A small MIRB made of emoji: questions over several drawings, in the released format.

Of each time step of the emoji world the same number of things is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_SIZE,
    EMOJI_STEPS,
    EmojiImages,
    load_emoji_table,
)
from avalanche_clip.benchmarks.datasets.mirb import MultiImageSample
from avalanche_clip.common.checks import as_integer
from avalanche_clip.common.files import replacing_folder, write_json
from avalanche_clip.common.randomness import scramble

_GROUPS = (
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
)
_COUNTS = {"attribute": 96, "count": 48, "image_jigsaw": 48, "visual_chain": 24}
_STYLE, _OTHERS = "twemoji", ("noto", "openmoji")
_SIGNS = ("heavy equals sign", "plus", *(f"keycap: {digit}" for digit in range(10)))
_SHEET, _MOST_SHOWN, _UNLIKE = 4, 4, 16.0
Drawing = npt.NDArray[np.uint8]


def emoji_mirb(seed: int = 0) -> list[MultiImageSample]:
    """Make 216 questions over drawings of things, animals, food and places.

    - ``attribute`` (96): do three drawings, one of each artist, show the same thing?
      Half do; else one shows another thing of the same subgroup.
    - ``count`` (48): how often is a thing drawn on two sheets of four?
    - ``image_jigsaw`` (48): the first drawing is whole, four more are the quarters of
      another artist's drawing; which of four orders puts them together? The fields
      ``whole`` and ``grid`` say so to programs.
    - ``visual_chain`` (24): three equations of drawings, digits and signs, shuffled;
      what number does the last drawing stand for?

    The step of the thing that is asked for is the field ``step``. Nothing is drawn
    from global generators; the same seed gives the same pixels everywhere.

    :param seed: any integer.

    >>> samples = emoji_mirb()
    >>> len(samples), samples[96].question, samples[96].answer
    (216, 'How many drawings of "dog" are there in total?', '4')
    """
    return list(_Maker(as_integer(seed, "seed")).samples())


def write_emoji_mirb(folder: str | Path, seed: int = 0) -> Path:
    """Write :func:`emoji_mirb` as MIRB is released: JSON files and ``images``.

    :param folder: made; what was in it is replaced as a whole.
    :param seed: any integer.
    :return: the folder, for :class:`MIRBDataset`.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COUNTS}
    samples = emoji_mirb(seed)
    with replacing_folder(folder) as new:
        for sample in samples:
            names = []
            for place in range(len(sample.images)):
                number = len(rows[sample.subset])
                name = f"images/{sample.subset}/{number:03d}_{place}.png"
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                sample.picture(place).save(new / name)
                names.append(name)
            rows[sample.subset].append(
                {
                    "questions": sample.question,
                    "answers": sample.answer,
                    "images": names,
                    **sample.extra,
                }
            )
        for subset, content in rows.items():
            write_json(new / f"{subset}.json", content)
    return Path(folder)


class _Maker:
    """Draws numbers by scrambling, so that neither versions nor order matter."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.table = table = load_emoji_table()
        self.drawings = {s: EmojiImages(s) for s in (_STYLE, *_OTHERS)}
        groups = [table.groups.index(group) for group in _GROUPS]
        shown = np.isin(table.group, groups)
        self.pool = np.flatnonzero(shown)
        self.signs = [table.names.index(sign) for sign in _SIGNS]

    def order(self, count: int, *parts: int) -> list[int]:
        """Return 0..count-1 in an order of their own for each key."""
        return np.argsort(scramble(self.seed, *parts, np.arange(count))).tolist()

    def draw(self, emoji: int, style: str = _STYLE) -> Drawing:
        """Pixels of an emoji, ``(48, 48, 3)``."""
        return np.asarray(self.drawings[style][emoji])

    def things(self, subset: int) -> Iterator[int]:
        """Yield emoji of the steps in turn, in an order of the subset's own."""
        by_step = [
            self.pool[self.table.step[self.pool] == k] for k in range(len(EMOJI_STEPS))
        ]
        orders = [
            rows[self.order(len(rows), subset, k)].tolist()
            for k, rows in enumerate(by_step)
        ]
        for place in range(max(map(len, orders))):
            yield from (order[place % len(order)] for order in orders)

    def samples(self) -> Iterator[MultiImageSample]:
        for number, (subset, count) in enumerate(_COUNTS.items()):
            make = getattr(self, f"_{subset}")
            made = 0
            for thing in self.things(number):
                if made == count:
                    break
                found = make(made, thing)
                if found is None:
                    continue
                images, question, answer, extra = found
                step = EMOJI_STEPS[self.table.step[thing]].label
                yield MultiImageSample(
                    [Image.fromarray(np.ascontiguousarray(i)) for i in images],
                    question,
                    str(answer),
                    subset,
                    f"{subset}/{made}",
                    {**extra, "step": step},
                )
                made += 1

    def _attribute(self, number: int, thing: int) -> Any:
        styles = (_STYLE, *_OTHERS)
        table = self.table
        alike = self.pool[table.subgroup[self.pool] == table.subgroup[thing]]
        others = alike[alike != thing]
        if not len(others):
            return None
        same = number // len(EMOJI_STEPS) % 2 == 0
        shown = [thing] * len(styles)
        if not same:
            other = others[self.order(len(others), 10, thing)[0]]
            shown[self.order(len(styles), 11, thing)[0]] = int(other)
        images = [self.draw(e, s) for e, s in zip(shown, styles, strict=True)]
        question = "Do all of these drawings show the same thing?"
        return images, question, "yes" if same else "no", {}

    def _count(self, number: int, thing: int) -> Any:
        blank = np.full((EMOJI_SIZE, EMOJI_SIZE, 3), 255, np.uint8)
        others = self.pool[self.pool != thing]
        images, total = [], 0
        for sheet in range(2):
            key = (20 + sheet, thing)
            count = self.order(_MOST_SHOWN, *key, 0)[0] + 1 - sheet
            total += count
            chosen = others[self.order(len(others), *key, 1)[:_SHEET]]
            # a cell in two stays empty beside the things asked for
            cells = [self.draw(thing)] * count
            for cell in range(_SHEET - count):
                cells.append(self.draw(int(chosen[cell])) if cell % 2 else blank)
            cells = [cells[k] for k in self.order(_SHEET, *key, 2)]
            images.append(_joined([_joined(cells[:2], 1), _joined(cells[2:], 1)], 0))
        name = self.table.names[thing]
        return images, f'How many drawings of "{name}" are there in total?', total, {}

    def _image_jigsaw(self, number: int, thing: int) -> Any:
        drawing, half = self.draw(thing), EMOJI_SIZE // 2
        quarters = [
            drawing[y : y + half, x : x + half] for y in (0, half) for x in (0, half)
        ]
        pixels = np.stack(quarters).astype(float)
        unlike = np.sqrt(((pixels[:, None] - pixels) ** 2).mean((2, 3, 4)))
        if unlike[~np.eye(4, dtype=bool)].min() < _UNLIKE:
            return None  # quarters that nobody could tell apart
        shuffled = self.order(4, 30, thing)  # patch k shows quarter shuffled[k]
        right = [shuffled.index(quarter) for quarter in range(4)]
        orders = [right]
        for k in range(31, 99):
            order = self.order(4, k, thing)
            if order not in orders and len(orders) < 4:
                orders.append(order)
        gold = number % 4
        orders[0], orders[gold] = orders[gold], orders[0]
        name = self.table.names[thing]
        options = "\n".join(
            f"{'ABCD'[k]}. {' '.join(str(p + 1) for p in order)}"
            for k, order in enumerate(orders)
        )
        question = (
            f'The first picture is a drawing of "{name}". The others are patches 1 to '
            "4 of another drawing of it. In which order, row by row, do they make up "
            f"that drawing?\n{options}"
        )
        images = [self.draw(thing, _OTHERS[0]), *(quarters[k] for k in shuffled)]
        return images, question, "ABCD"[gold], {"whole": 0, "grid": [2, 2]}

    def _visual_chain(self, number: int, thing: int) -> Any:
        others = self.pool[self.pool != thing]
        first, second = others[self.order(len(others), 40, thing)[:2]].tolist()
        numbers = [k + 1 for k in self.order(9, 41, thing)[:3]]
        equals, plus, *digits = self.signs
        rows = [
            [first, equals, digits[numbers[0]]],
            [second, equals, first, plus, digits[numbers[1]]],
            [thing, equals, second, plus, digits[numbers[2]]],
        ]
        images = [_joined([self.draw(e) for e in row], 1) for row in rows]
        images = [images[k] for k in self.order(3, 42, thing)]
        name = self.table.names[thing]
        question = f'The pictures are equations. Which number does "{name}" stand for?'
        return images, question, sum(numbers), {}


def _joined(drawings: Sequence[Drawing], axis: int) -> Drawing:
    return np.concatenate(drawings, axis)
