"""Captioned images as columns, read from lists of annotations in JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.emoji import EMOJI_LANGUAGES
from avalanche_clip.benchmarks.datasets.plain_texts import check_names
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.common.checks import require_choice, require_length
from avalanche_clip.common.files import read_json, require_file, unreadable
from avalanche_clip.common.pictures import read_picture

LANGUAGES_36 = tuple(sorted(EMOJI_LANGUAGES))
"""Codes of the languages of XM3600 and MSCOCO36, in alphabetical order."""


def check_language(language: str) -> None:
    """Raise ValueError unless a code is one of the 36 languages."""
    require_choice("language", language, LANGUAGES_36)


def load_image(root: str | Path | None, name: str) -> Image.Image:
    """Read a picture as RGB.

    :param root: folder of the pictures.
    :param name: path below it.
    :raises ValueError: if there is no folder, or the file is no picture or too large.
    :raises FileNotFoundError: if there is no such file.
    """
    if root is None:
        raise ValueError(
            f"The picture {name} cannot be read: no image_root was given. Pass it, or "
            "leave pictures out with without_images and stored features."
        )
    return read_picture(Path(root) / name)


class CaptionedImages:
    """Map-style data set of pictures with one or several captions each.

    Items are ``(RGB image, caption or list of captions)``; pictures are read when
    an item is. Captions and names are columns, not objects.

    :param names: path of each picture below ``image_root``.
    :param captions: all captions, picture after picture.
    :param counts: captions of each picture, integers, ``(N,)``.
    :param image_ids: id of each picture, integers, ``(N,)``.
    :param image_root: folder of the pictures; None if they are never read.
    :param single: whether items hold a string, which needs one caption each.
    :raises ValueError: if the columns do not fit together, or a picture has no
        caption.

    :ivar image_id: int64 ``(N,)``.
    """

    def __init__(
        self,
        names: Sequence[str],
        captions: Sequence[str],
        counts: npt.ArrayLike,
        image_ids: npt.ArrayLike,
        image_root: str | Path | None = None,
        *,
        single: bool = False,
    ) -> None:
        sizes = np.asarray(counts, dtype=np.int64)
        self.image_id = np.asarray(image_ids, dtype=np.int64)
        require_length(sizes, len(names), "counts", "picture")
        require_length(self.image_id, len(names), "image ids", "picture")
        if int(sizes.sum()) != len(captions) or (sizes < 1).any():
            raise ValueError(
                f"counts sum to {sizes.sum()} for {len(captions)} captions, the "
                f"smallest is {sizes.min(initial=1)}; each picture needs at least "
                "one caption, and each caption a picture."
            )
        if single and (sizes != 1).any():
            raise ValueError("single=True, but pictures have several captions.")
        self.names = TextColumn.from_texts(names)
        self.captions = TextColumn.from_texts(captions)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.image_root = image_root
        self.single = single

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int) -> tuple[Image.Image, str | list[str]]:
        return load_image(self.image_root, self.names[item]), self.text(item)

    def text(self, item: int) -> str | list[str]:
        """Return the caption or captions of an item without its picture."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} is out of range for {len(self)} pictures.")
        start, end = self.starts[item % len(self)], self.starts[item % len(self) + 1]
        found = self.captions[int(start) : int(end)]
        return found[0] if self.single else found

    def image_name(self, item: int) -> str:
        """Return the path of a picture below ``image_root``."""
        return self.names[item]


def read_annotations(
    path: str | Path, image_root: str | Path | None = None
) -> CaptionedImages:
    """Read a list of ``{"image", "caption", "image_id"}`` objects.

    ``caption`` is a string (one item per caption) in all objects, or a list of
    strings in all (one item per picture). Carriage returns in captions become
    spaces.

    :param path: JSON file.
    :param image_root: folder of the pictures.
    :return: items in the order of the file.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the object, if one is incomplete or of another kind,
        one picture has several ids, or its path leaves the folder.
    """
    path = require_file(
        path, "give the folder of the released annotations, with their original names"
    )
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise unreadable(path, "a list of annotations", "it holds no list of entries")
    kinds = {type(entry.get("caption")) for entry in content if isinstance(entry, dict)}
    single = kinds == {str}
    known: dict[str, int] = {}
    for number, entry in enumerate(content):
        wrong = _wrong(entry, single)
        if not wrong:
            before = known.setdefault(entry["image"], entry["image_id"])
            if before != entry["image_id"]:
                wrong = f"its picture has the id {before} before"
        if wrong:
            raise ValueError(
                f"{path}, entry {number}: {wrong}. Every entry needs 'image' (a "
                "path), 'image_id' (an integer, one per picture) and 'caption': a "
                "string in all entries, or a list of them in all."
            )
    check_names(known, path, image_root)
    lists = [[e["caption"]] if single else e["caption"] for e in content]
    return CaptionedImages(
        [entry["image"] for entry in content],
        [text.replace("\r", " ") for texts in lists for text in texts],
        [len(texts) for texts in lists],
        [entry["image_id"] for entry in content],
        image_root,
        single=single,
    )


def _wrong(entry: Any, single: bool) -> str:
    if not isinstance(entry, Mapping):
        return f"it is a {type(entry).__name__}"
    captions = is_text if single else is_texts
    for key, fits in (("image", is_text), ("image_id", is_id), ("caption", captions)):
        if not fits(entry.get(key)):
            return f"{key!r} is {entry.get(key)!r}"
    return ""


def is_text(value: Any) -> bool:
    """Whether a value from JSON is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def is_texts(value: Any) -> bool:
    """Whether a value from JSON is a list of texts, with at least one."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def is_id(value: Any) -> bool:
    """Whether a value from JSON is an integer of 64 bits."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and -(2**63) <= value < 2**63


def read_ground_truth(path: str | Path) -> dict[int, list[str]]:
    """Read a ``*_gt.json`` file: captions by image id.

    :param path: JSON file with ``annotations`` (``image_id``, ``caption``, ``id``) and
        ``images`` (``id``).
    :return: image id -> captions, images in the order of the file.
    :raises ValueError: if the file has another form, or an annotation names an
        image that is not listed.
    """
    path = Path(path)
    content = read_json(path, dict)
    found: dict[int, list[str]] = {}
    try:
        for image in content["images"]:
            found[_checked(image["id"], is_id)] = []
        for entry in content["annotations"]:
            caption = _checked(entry["caption"], is_text)
            found[_checked(entry["image_id"], is_id)].append(caption)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not fit: {type(error).__name__} {error}. It needs 'images' "
            "with ids and 'annotations' with the id of a listed image and a caption."
        ) from error
    return found


def _checked(value: Any, fits: Callable[[Any], bool]) -> Any:
    if not fits(value):
        raise ValueError(f"{value!r} is no {'id' if fits is is_id else 'text'}")
    return value


def missing_images(image_root: str | Path, names: Iterable[str]) -> list[str]:
    """List the pictures that are not below a folder, each once.

    :param image_root: folder of the pictures.
    :param names: paths below it.
    """
    root = Path(image_root)
    return [name for name in dict.fromkeys(names) if not (root / name).is_file()]
