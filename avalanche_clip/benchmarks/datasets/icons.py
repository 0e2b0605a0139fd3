"""Reader of the held-out icons: drawings whose names no shipped model was taught.

One drawing for each of 968 names, out of the icons by some 180 teams that the
``icons`` weights were trained on. The names were held out by a hash, with all their
drawings; none of them says, in whatever order of words, what is trained on there or in
a stream of emoji: no name of an icon, no name or keyword of an emoji. Emoji and icons
are all that studies here test on, and only the icons are no part of any stream.

``tools/train_icons.py`` makes the files; ``data/NOTICE_icons`` states the licences.
This module needs NumPy and Pillow only.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.shipped import read_data, read_sheet, reading
from avalanche_clip.common.checks import as_texts, require_distinct, require_length

FIRST_ICON_ID = 500_000
"""Sample ids of icons start here; those of emoji, in all languages, are smaller."""

_TABLE = "icons_held_out.json"
_SHEET = "icons_held_out.webp"


@functools.cache
def _load_table() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and sets of the icons, read once per process."""
    content = read_data(_TABLE)
    with reading(_TABLE):
        table = json.loads(content)
        names = tuple(as_texts(table["names"], "names"))
        sets = tuple(as_texts(table["sets"], "sets"))
        require_distinct(names, "names")
        require_length(sets, len(names), "sets", "name")
        return names, sets


@functools.cache
def _load_sheet() -> npt.NDArray[np.uint8]:
    """Drawings, uint8 ``(N, 48, 48, 3)``, decoded once per process."""
    return read_sheet(_SHEET, len(_load_table()[0]))


class HeldOutIcons:
    """Map-style data set of (drawing, name) pairs, one per held-out name.

    :ivar names: names, sorted; no two have the same words.
    :ivar sets: prefix of the icon set that each drawing is from.
    :ivar sample_id: int64 ``(len,)``, from :data:`FIRST_ICON_ID`.

    >>> icons = HeldOutIcons()
    >>> len(icons), icons[0][0].size, icons[0][1] == icons.names[0]
    (968, (48, 48), True)
    """

    def __init__(self) -> None:
        self.names, self.sets = _load_table()

    @property
    def sample_id(self) -> npt.NDArray[np.int64]:
        """Stable identifier of each drawing."""
        return FIRST_ICON_ID + np.arange(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int) -> tuple[Image.Image, str]:
        """Return one drawing, as a new image, and its name.

        :raises IndexError: if ``item`` is out of range.
        """
        return Image.fromarray(_load_sheet()[item]), self.names[item]
