"""A small MIRB made of emoji: questions over several drawings, in the released format.

``tools/build_emoji_mirb.py`` chooses what is asked; pictures are put together from the
embedded drawings.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avalanche_clip.benchmarks.datasets.emoji import EMOJI_SIZE, EmojiImages
from avalanche_clip.benchmarks.datasets.mirb import MultiImageSample
from avalanche_clip.benchmarks.datasets.shipped import read_data, reading
from avalanche_clip.common.files import replacing_folder, write_json

_FILE = "emoji_mirb.json"


def emoji_mirb() -> list[MultiImageSample]:
    """Return 216 questions over drawings of things, animals, food and places.

    - ``attribute`` (96): do three drawings, one of each artist, show the same thing?
      Half do; else one shows another thing, the one with the most similar colours.
    - ``count`` (48): how often is a thing drawn on two sheets of four?
    - ``image_jigsaw`` (48): the first drawing is whole, four more are the quarters of
      another artist's drawing; which of four orders puts them together? The wrong ones
      fit best by colours. The fields ``whole`` and ``grid`` say what is what.
    - ``visual_chain`` (24): three equations of drawings, digits and signs, shuffled;
      what number does a drawing stand for?

    Of each time step of the emoji world the same number of things is asked for; the
    step is the field ``step``.

    >>> samples = emoji_mirb()
    >>> len(samples), samples[96].question, samples[96].answer
    (216, 'How many drawings of "speaker high volume" are there in total?', '5')
    """
    return [
        MultiImageSample(
            [_picture(*parts) for parts in row["images"]],
            **{name: row[name] for name in ("question", "answer", "subset", "id")},
            extra=row["extra"],
        )
        for row in _read()
    ]


def write_emoji_mirb(folder: str | Path) -> Path:
    """Write :func:`emoji_mirb` as MIRB is released: JSON files and ``images``.

    :param folder: made; what was in it is replaced as a whole.
    :return: the folder, for :class:`MIRBDataset`.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    with replacing_folder(folder) as new:
        for sample in emoji_mirb():
            (new / "images" / sample.subset).mkdir(parents=True, exist_ok=True)
            count = range(len(sample.images))
            names = [f"images/{sample.id}_{place}.png" for place in count]
            for place, name in enumerate(names):
                sample.picture(place).save(new / name)
            asked = {"questions": sample.question, "answers": sample.answer}
            row = {**asked, "images": names, **sample.extra}
            rows.setdefault(sample.subset, []).append(row)
        for subset, content in rows.items():
            write_json(new / f"{subset}.json", content)
    return Path(folder)


@functools.cache
def _read() -> list[dict[str, Any]]:
    content = read_data(_FILE)
    with reading(_FILE):
        return json.loads(content)["questions"]


def _picture(style: str, emoji: list[list[int]], quarter: int = -1) -> Image.Image:
    """Draw rows of emoji, -1 for an empty place; or a quarter of one."""
    drawings = EmojiImages(style)
    blank = np.full((EMOJI_SIZE, EMOJI_SIZE, 3), 255, np.uint8)
    cells = [
        [np.asarray(drawings[e]) if e >= 0 else blank for e in row] for row in emoji
    ]
    pixels = np.concatenate([np.concatenate(row, axis=1) for row in cells])
    if quarter >= 0:
        (y, x), half = divmod(quarter, 2), EMOJI_SIZE // 2
        pixels = pixels[y * half :, x * half :][:half, :half]
    return Image.fromarray(np.ascontiguousarray(pixels))
