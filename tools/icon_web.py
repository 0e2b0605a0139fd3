"""A small web of pictures with names: openly licensed icons by many artists.

Reads the unpacked npm package ``@iconify/json`` (some 380,000 vector icons in 238
sets), keeps what may be used and can be learned, and draws it. What is kept:

- sets whose licence allows adaptations without sharing alike (:data:`LICENCES`);
- no emoji: neither the category Emoji, nor any set named after them, nor one that
  draws them without saying so. What is learned from the icons is what is known of the
  emoji that are to come;
- no brands: neither the category Logos nor Programming, nor sets of brands elsewhere.
  Their names say nothing about the picture;
- names of at most four words without words of style, drawn by several sets (variants
  that a team publishes as sets of their own count as several);
- of each name one drawing per set.

Flags are named by codes of countries; the names that belong to the codes are those
of the emoji table. Nothing depends on clock, random numbers or order of folders.

Build-only requirements: ``resvg-py`` (drawing) and ``scipy`` (areas of a drawing).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

PACKAGE, VERSION = "@iconify/json", "2.2.535"

LICENCES = frozenset(
    "MIT Apache-2.0 ISC CC0-1.0 CC-BY-3.0 CC-BY-4.0 BSD-2-Clause BSD-3-Clause MPL-2.0"
    " OFL-1.1".split()
)
LEFT_OUT = frozenset({"Emoji", "Logos", "Programming"})
# Of Dinkie Icons' names that other sets share, 63 % are names of emoji (next: 34 %).
EMOJI_SETS = frozenset({"dinkie-icons"})
BRAND_SETS = frozenset("devicon-line devicon-original fa-brands fa6-brands".split())
FLAG_SETS = frozenset({"circle-flags", "cif", "flag", "flagpack"})

# Words that say how a thing is drawn, not what it is.
STYLE_WORDS = frozenset(
    "alt baseline bold broken bulk color colour curved duotone fill filled flat freebie"
    " glyph icon icons ios light line linear lined ltr md medium micro mini"
    " multicolor o outline outlined pixel poly regular remix round rounded rtl s"
    " semibold sharp solid stroke stroked thin tone twotone variant".split()
)
MOST_WORDS, LEAST_LETTERS, MOST_LETTERS = 4, 3, 26
HELD_OUT = 0.02

SIDE = 48
MOST_AREAS = 7
_DRAWN_AT = 2 * SIDE
_INK, _OPEN = 24, 90  # alpha from which a pixel is drawn, and below which it is open
_LEAST_AREA = 12  # pixels of the larger drawing
_MARGIN = 1.04
_DARK = 40  # a drawing without a lighter value has one colour, to be chosen


class IconSet(NamedTuple):
    """One artist's or team's set.

    :ivar info: title, author, licence and category, as in the package.
    :ivar icons: name -> ``body`` and box of an icon.
    """

    prefix: str
    info: dict[str, Any]
    icons: dict[str, dict[str, Any]]


class Drawing(NamedTuple):
    """Which icon is drawn, and under which name.

    :ivar caption: cleaned name; equal ones are the same concept.
    :ivar held_out: never to be trained on.
    """

    caption: str
    prefix: str
    name: str
    held_out: bool


# ------------------------------------------------------------------ the package
def download(folder: Path) -> Path:
    """Fetch and unpack the package, unless it is there; return its root."""
    root = folder / "package"
    if not (root / "collections.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / done.stdout.split()[-1]) as tar:
            tar.extractall(folder, filter="data")
    return root


def read_sets(root: Path) -> list[IconSet]:
    """Read the sets that may be used, by prefix.

    :param root: the unpacked package.
    :raises FileNotFoundError: if it is not there.
    """
    if not (root / "collections.json").is_file():
        raise FileNotFoundError(
            f"{root} is not the unpacked package {PACKAGE}; run with --download, or "
            f"`npm pack {PACKAGE}@{VERSION}` and unpack it there."
        )
    sets = []
    for path in sorted((root / "json").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        info = content["info"]
        if info["license"].get("spdx") not in LICENCES or is_left_out(path.stem, info):
            continue
        box = {
            k: content[k] for k in ("left", "top", "width", "height") if k in content
        }
        icons = {
            name: {**box, **icon}
            for name, icon in content["icons"].items()
            if not icon.get("hidden")
        }
        sets.append(IconSet(content["prefix"], info, icons))
    return sets


def is_left_out(prefix: str, info: dict[str, Any]) -> bool:
    """Whether a set is of emoji, logos or brands."""
    # One set of emoji has no category.
    named = "emoji" in prefix or "emoji" in info["name"].lower()
    listed = prefix in EMOJI_SETS | BRAND_SETS
    return named or listed or info.get("category") in LEFT_OUT


# -------------------------------------------------------------------- the names
def caption(name: str) -> str | None:
    """Return what an icon's name says without words of style; None if unfit.

    >>> caption("dog-side-outline-24"), caption("2g"), caption("a-b-c-d-e")
    ('dog side', None, None)
    """
    words = [
        word
        for word in re.split(r"[-_\s]+", name.lower())
        if word not in STYLE_WORDS and not re.fullmatch(r"\d*(px|x\d+)?|v\d+", word)
    ]
    text = " ".join(words)
    fits = LEAST_LETTERS <= len(text) <= MOST_LETTERS and len(words) <= MOST_WORDS
    return text if fits and re.fullmatch("[a-z ]+", text) else None


def flag_names(ids: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Map two-letter codes to names of flags, from the emoji table.

    >>> flag_names(["1F1E8-1F1ED"], ["flag: Switzerland"])
    {'ch': 'flag: Switzerland'}
    """
    found = {}
    for code, name in zip(ids, names, strict=True):
        letters = [int(point, 16) - 0x1F1E6 for point in code.split("-")]
        if len(letters) == 2 and all(0 <= letter < 26 for letter in letters):
            found["".join(chr(97 + letter) for letter in letters)] = name
    return found


def share(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose(sets: Sequence[IconSet], flags: dict[str, str], least: int) -> list[Drawing]:
    """Choose the drawings: one per name and set, by caption and prefix.

    :param flags: code -> name, for sets of flags.
    :param least: sets that must share a caption, unless it is held out or a flag's.
    """
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for prefix, _, icons in sets:
        for name in icons:
            if prefix in FLAG_SETS:
                text = flags.get(re.sub("-(4x3|1x1)$", "", name))
            else:
                text = caption(name)
            if text is not None:
                found[text][prefix].append(name)
    chosen = []
    for text, by_set in sorted(found.items()):
        is_flag = text.startswith("flag: ")
        held = not is_flag and share(text) < HELD_OUT
        if held or is_flag or len(by_set) >= least:
            chosen += [
                Drawing(text, prefix, min(names, key=lambda n: share(prefix + n)), held)
                for prefix, names in sorted(by_set.items())
            ]
    return chosen


# ------------------------------------------------------------------ the drawings
def require_libraries() -> None:
    """Raise ImportError if what draws is not installed."""
    wanted = {"resvg_py": "resvg-py", "scipy": "scipy"}
    missing = [name for module, name in wanted.items() if not find_spec(module)]
    if missing:
        raise ImportError(
            f"Icons are drawn with {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}, or avalanche-clip[studies]."
        )


def draw(icon: dict[str, Any]) -> Image.Image | None:
    """Draw an icon, zoomed to what is drawn; None if that is nothing.

    :return: 48 x 48 pixels. RGBA for icons with colours of their own; LA for those of
        one colour, which is to be chosen: alpha is the ink, and L numbers the areas
        that the ink encloses, 1 the largest, 0 outside.
    :raises ValueError: if the rasteriser cannot draw it.
    """
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", 16), icon.get("height", 16)
    side = max(width, height)
    box = (left + (width - side) / 2, top + (height - side) / 2, side)
    ink = _raster(icon["body"], box)[..., 3] > _INK
    if not ink.any():
        return None
    x, y = (np.flatnonzero(ink.any(axis)) for axis in (0, 1))
    part = max(np.ptp(x), np.ptp(y)) + 1
    unit = side / _DRAWN_AT
    zoomed = _MARGIN * part * unit
    centre = [(c[0] + c[-1] + 1) / 2 * unit for c in (x, y)]
    box = (box[0] + centre[0] - zoomed / 2, box[1] + centre[1] - zoomed / 2, zoomed)
    pixels = _raster(icon["body"], box)
    drawn = pixels[pixels[..., 3] > 128][:, :3]
    small = _halved(pixels)
    if drawn.size and drawn.max() >= _DARK:
        return Image.fromarray(small, "RGBA")
    return Image.fromarray(
        np.stack([areas(pixels[..., 3]), small[..., 3]], axis=-1), "LA"
    )


def _raster(body: str, box: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    import resvg_py

    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" color="#000" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box[0]} {box[1]} {box[2]} {box[2]}">{body}</svg>'
    )
    content = resvg_py.svg_to_bytes(
        svg_string=text, width=_DRAWN_AT, height=_DRAWN_AT, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGBA"))


def areas(alpha: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Number the areas that the ink of a drawing encloses.

    :param alpha: ``(2S, 2S)``.
    :return: ``(S, S)``; 0 outside and in areas of a few pixels, 1 in the largest, at
        most :data:`MOST_AREAS`; ink at the edge of an area has its number.
    """
    from scipy import ndimage

    parts, count = ndimage.label(alpha < _OPEN)
    size = np.bincount(parts.ravel(), minlength=count + 1)
    outside = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
    size[np.unique(np.concatenate(outside))] = 0
    size[0] = 0
    size[size < _LEAST_AREA] = 0
    numbers = np.zeros(count + 1, dtype=np.uint8)
    order = [part for part in np.argsort(-size, kind="stable") if size[part]]
    for rank, part in enumerate(order, start=1):
        numbers[part] = min(rank, MOST_AREAS)
    numbered = numbers[parts]
    grown = ndimage.maximum_filter(numbered, 3)
    numbered = np.where(alpha >= _OPEN, grown, numbered)
    side = len(alpha) // 2
    return numbered.reshape(side, 2, side, 2).max((1, 3))


def _halved(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Halve the size of RGBA pixels; colours count by their alpha."""
    values = pixels.astype(np.float32).reshape(SIDE, 2, SIDE, 2, 4)
    alpha = values[..., 3:]
    mean = alpha.mean((1, 3))
    colour = (values[..., :3] * alpha).mean((1, 3)) / np.maximum(mean, 1e-3)
    return np.concatenate([colour, mean], axis=-1).round().clip(0, 255).astype(np.uint8)


def draw_all(
    sets: Sequence[IconSet], chosen: Sequence[Drawing]
) -> Iterator[tuple[Drawing, Image.Image]]:
    """Draw what can be drawn."""
    by_prefix = {one.prefix: one.icons for one in sets}
    for drawing in chosen:
        try:
            image = draw(by_prefix[drawing.prefix][drawing.name])
        except ValueError:  # not every body is valid
            continue
        if image is not None:
            yield drawing, image


# ----------------------------------------------------------------------- a store
def write_drawings(
    folder: Path, drawings: Iterator[tuple[Drawing, Image.Image]]
) -> int:
    """Write drawings as one array and one table; return how many.

    ``drawings.npy`` is uint8 ``(N, 48, 48, 4)``; those of one colour have the number of
    the area in the first channel and the ink in the last. ``drawings.json`` holds per
    row caption, prefix, name, whether held out and whether of one colour.
    """
    rows: list[list[Any]] = []
    pixels = []
    for drawing, image in drawings:
        rows.append([*drawing, image.mode == "LA"])
        full = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
        full[..., [0, 3] if image.mode == "LA" else slice(None)] = np.asarray(image)
        pixels.append(full)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "drawings.npy", np.stack(pixels))
    (folder / "drawings.json").write_text(json.dumps(rows), encoding="utf-8")
    return len(rows)


class DrawnIcons:
    """Map-style data set of (drawing, caption) pairs, from :func:`write_drawings`.

    :param folder: where they were written.
    :param held_out: those that are, or those that are not.

    :ivar captions: name of each.
    :ivar prefixes: set of each.
    :ivar one_colour: bool ``(len,)``, whether its colour is to be chosen.
    """

    def __init__(self, folder: Path, held_out: bool = False) -> None:
        self._pixels = np.load(folder / "drawings.npy", mmap_mode="r")
        rows = json.loads((folder / "drawings.json").read_text(encoding="utf-8"))
        self._rows = [i for i, row in enumerate(rows) if row[3] == held_out]
        self.captions = [rows[i][0] for i in self._rows]
        self.prefixes = [rows[i][1] for i in self._rows]
        self.one_colour = np.array([rows[i][4] for i in self._rows], dtype=bool)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> tuple[Image.Image, str]:
        pixels = np.asarray(self._pixels[self._rows[item]])
        if self.one_colour[item]:
            image = Image.fromarray(np.ascontiguousarray(pixels[..., [0, 3]]), "LA")
        else:
            image = Image.fromarray(pixels, "RGBA")
        return image, self.captions[item]

    def text(self, item: int) -> str:
        """Return a caption without its drawing."""
        return self.captions[item]
