"""Choose the questions of the small MIRB that is made of emoji.

    python tools/build_emoji_mirb.py

Writes ``emoji_mirb.json`` beside the other embedded data: texts, golds, and which
drawings stand where. The same file each time: numbers are drawn by scrambling, which
depends neither on versions nor on the order of the draws.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from avalanche_clip.benchmarks.datasets.emoji import (  # noqa: E402
    EMOJI_SIZE,
    EMOJI_STEPS,
    EmojiImages,
    load_emoji_table,
)
from avalanche_clip.common.files import write_json  # noqa: E402
from avalanche_clip.common.randomness import scramble  # noqa: E402

PATH = ROOT / "avalanche_clip" / "benchmarks" / "datasets" / "data" / "emoji_mirb.json"
GROUPS = (
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
)
COUNTS = {"attribute": 96, "count": 48, "image_jigsaw": 48, "visual_chain": 24}
STYLES = ("twemoji", "noto", "openmoji")
STYLE, WHOLE = "twemoji", "openmoji"
SIGNS = ("heavy equals sign", "plus", *(f"keycap: {digit}" for digit in range(10)))
SHEET = 4
UNLIKE = 16.0
"""Least root mean square between the quarters of a drawing, of 255."""

TABLE = load_emoji_table()
POOL = np.flatnonzero(np.isin(TABLE.group, [TABLE.groups.index(g) for g in GROUPS]))


def order(count: int, *key: int) -> list[int]:
    """Return 0..count-1 in an order of its own for each key."""
    return np.argsort(scramble(0, *key, np.arange(count))).tolist()


def things(subset: int) -> Iterator[int]:
    """Yield emoji of the steps in turn, in an order of the subset's own."""
    orders = []
    for step in range(len(EMOJI_STEPS)):
        rows = POOL[TABLE.step[POOL] == step]
        orders.append(rows[order(len(rows), subset, step)].tolist())
    for place in range(max(map(len, orders))):
        yield from (found[place % len(found)] for found in orders)


def coarse(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of 6 x 6 fields, as one row: what is alike without any knowledge."""
    side = pixels.shape[0] // 6
    fields = pixels.reshape(6, side, 6, side, 3)
    return fields.mean((1, 3)).ravel()


def drawn(style: str, emoji: int) -> np.ndarray:
    """Pixels of a drawing, as numbers."""
    return np.asarray(EmojiImages(style)[emoji]).astype(float)


@cache
def colours_of(style: str) -> np.ndarray:
    """Coarse colours of all drawings of the pool, one row each."""
    return np.stack([coarse(drawn(style, emoji)) for emoji in POOL])


def attribute(number: int, thing: int) -> Any:
    """Ask whether three drawings show the same thing."""
    same = number // len(EMOJI_STEPS) % 2 == 0
    shown = [thing] * len(STYLES)
    if not same:
        place = order(len(STYLES), 11, thing)[0]
        own = [coarse(drawn(s, thing)) for k, s in enumerate(STYLES) if k != place]
        colours = colours_of(STYLES[place])
        far = sum(np.linalg.norm(colours - row, axis=1) for row in own)
        far[POOL == thing] = np.inf
        shown[place] = int(POOL[np.argmin(far)])
    images = [[s, [[e]]] for s, e in zip(STYLES, shown, strict=True)]
    question = "Do all of these drawings show the same thing?"
    return images, question, "yes" if same else "no", {}


def count(number: int, thing: int) -> Any:
    """Ask how often a thing is on two sheets of four."""
    others = POOL[POOL != thing]
    images, total = [], 0
    for sheet in range(2):
        key = (20 + sheet, thing)
        shown = order(SHEET, *key, 0)[0] + 1 - sheet
        total += shown
        chosen = others[order(len(others), *key, 1)[:SHEET]].tolist()
        # every second place stays empty beside the things asked for
        cells = [thing] * shown
        cells += [chosen[k] if k % 2 else -1 for k in range(SHEET - shown)]
        cells = [cells[k] for k in order(SHEET, *key, 2)]
        images.append([STYLE, [cells[:2], cells[2:]]])
    question = f'How many drawings of "{TABLE.names[thing]}" are there in total?'
    return images, question, total, {}


def image_jigsaw(number: int, thing: int) -> Any:
    """Ask for the order of the quarters of a drawing."""
    half = EMOJI_SIZE // 2
    starts = [(y, x) for y in (0, half) for x in (0, half)]
    quarters, cells = (
        np.stack([drawn(style, thing)[y : y + half, x : x + half] for y, x in starts])
        for style in (STYLE, WHOLE)
    )
    unlike = np.sqrt(((quarters[:, None] - quarters) ** 2).mean((2, 3, 4)))
    if unlike[~np.eye(4, dtype=bool)].min() < UNLIKE:
        return None  # nobody could tell them apart
    shuffled = order(4, 30, thing)  # patch k shows quarter shuffled[k]
    right = [shuffled.index(quarter) for quarter in range(4)]
    patches = [coarse(quarters[quarter]) for quarter in shuffled]
    colours = [coarse(cell) for cell in cells]
    far = {
        found: sum(
            np.linalg.norm(colours[k] - patches[patch]) for k, patch in enumerate(found)
        )
        for found in permutations(range(4))
    }
    wrong = sorted(
        (found for found in far if list(found) != right), key=far.__getitem__
    )
    orders = [right, *map(list, wrong[:3])]
    gold = number % 4
    orders[0], orders[gold] = orders[gold], orders[0]
    options = "\n".join(
        f"{letter}. {' '.join(str(patch + 1) for patch in found)}"
        for letter, found in zip("ABCD", orders, strict=True)
    )
    question = (
        f'The first picture is a drawing of "{TABLE.names[thing]}". The others are '
        "patches 1 to 4 of another drawing of it. In which order, row by row, do they "
        f"make up that drawing?\n{options}"
    )
    parts = [[STYLE, [[thing]], quarter] for quarter in shuffled]
    images = [[WHOLE, [[thing]]], *parts]
    return images, question, "ABCD"[gold], {"whole": 0, "grid": [2, 2]}


def visual_chain(number: int, thing: int) -> Any:
    """Ask for the value of a drawing in three equations."""
    others = POOL[POOL != thing]
    first, second = others[order(len(others), 40, thing)[:2]].tolist()
    numbers = [k + 1 for k in order(9, 41, thing)[:3]]
    equals, plus, *digits = (TABLE.names.index(sign) for sign in SIGNS)
    rows = [
        [first, equals, digits[numbers[0]]],
        [second, equals, first, plus, digits[numbers[1]]],
        [thing, equals, second, plus, digits[numbers[2]]],
    ]
    images = [[STYLE, [rows[k]]] for k in order(3, 42, thing)]
    name = TABLE.names[thing]
    question = f'The pictures are equations. Which number does "{name}" stand for?'
    return images, question, sum(numbers), {}


MAKE = {
    "attribute": attribute,
    "count": count,
    "image_jigsaw": image_jigsaw,
    "visual_chain": visual_chain,
}


def questions() -> list[dict[str, Any]]:
    """All questions, as the file holds them."""
    rows: list[dict[str, Any]] = []
    for key, (subset, wanted) in enumerate(COUNTS.items()):
        made = 0
        for thing in things(key):
            found = MAKE[subset](made, thing) if made < wanted else None
            if found is None:
                continue
            images, question, answer, extra = found
            step = EMOJI_STEPS[TABLE.step[thing]].label
            rows.append(
                {
                    "id": f"{subset}/{made}",
                    "subset": subset,
                    "question": question,
                    "answer": str(answer),
                    "images": images,
                    "extra": {**extra, "step": step},
                }
            )
            made += 1
    return rows


if __name__ == "__main__":
    write_json(PATH, {"questions": questions()}, indent=None)
