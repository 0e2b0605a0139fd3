"""Reader of Crossmodal-3600: 3,600 pictures captioned by people in 36 languages.

Source: Thapliyal et al., EMNLP 2022 (arXiv 2205.12522); a test set only. Two forms
are read: the original ``captions.jsonl`` and the lists per language released with
CLL-CLIP (arXiv 2401.17186). The files are not part of this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avalanche_clip.benchmarks.datasets.captioned import (
    LANGUAGES_36,
    CaptionedImages,
    check_language,
    is_text,
    is_texts,
    read_annotations,
)
from avalanche_clip.benchmarks.datasets.plain_texts import check_names
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.common.checks import require_distinct
from avalanche_clip.common.files import parse_json, read_lines, unreadable

XM3600_LANGUAGES = LANGUAGES_36
XM3600_IMAGES = 3600
XM3600_CAPTIONS = dict(
    zip(
        XM3600_LANGUAGES,
        (
            *(7367, 3600, 7207, 7264, 8643, 7204, 7200, 8614, 7245, 7127, 7109, 8562),
            *(7200, 8503, 7280, 7216, 7126, 8471, 7185, 7650, 4732, 8059, 7213, 7141),
            *(7243, 7200, 7123, 7200, 7273, 7046, 7200, 7200, 7233, 7215, 7350, 7174),
        ),
        strict=True,
    )
)
"""Captions per language in the full data set."""

_FOLDER = Path("annotations/xm3600")
_FILE = "captions.jsonl"


class XM3600:
    """Crossmodal-3600 in its original form or as released with CLL-CLIP.

    :param root: the file ``captions.jsonl``, a folder that holds it, or a folder
        with ``annotations/xm3600/{language}/test.json`` (or ``data/annotations``...).
    :param image_root: folder of the pictures, ``{key}.jpg``; None if they are
        never read.
    :raises FileNotFoundError: if there is neither.
    """

    def __init__(self, root: str | Path, image_root: str | Path | None = None) -> None:
        root = Path(root).expanduser()
        self.image_root = image_root
        self._sets: dict[str, CaptionedImages] = {}
        folders = (root / _FOLDER, root / "data" / _FOLDER, root)
        found = [place for place in (root, root / _FILE) if place.is_file()]
        found += [folder for folder in folders if _has_languages(folder)]
        if not found:
            raise FileNotFoundError(
                f"{root} holds neither {_FILE} nor {_FOLDER}/<language>/test.json; "
                "give the file or the folder of the released data."
            )
        self._place = found[0]

    def test(self, language: str) -> CaptionedImages:
        """Return the pictures with all captions in one language.

        :param language: one of the 36 codes.
        :return: items in the order of the file. ``image_id`` is the released one;
            in the original form the position in the file.
        :raises ValueError: if the language is unknown or the file does not fit.
        """
        check_language(language)
        if self._place.is_dir():
            path = self._place / language / "test.json"
            if language not in self._sets:
                self._sets[language] = read_annotations(path, self.image_root)
        elif not self._sets:
            self._sets = _read_original(self._place, self.image_root)
        if language not in self._sets:
            raise ValueError(f"{self._place} has no captions in {language!r}.")
        return self._sets[language]

    def check_sizes(self, languages: Any = XM3600_LANGUAGES) -> None:
        """Compare the numbers of pictures and captions with the full data set.

        :param languages: codes.
        :raises ValueError: if one differs.
        """
        for language in languages:
            found = self.test(language)
            have = (len(found), len(found.captions))
            if have != (XM3600_IMAGES, XM3600_CAPTIONS[language]):
                raise ValueError(
                    f"{language}: {have[0]} pictures and {have[1]} captions found, "
                    f"{XM3600_IMAGES} and {XM3600_CAPTIONS[language]} expected; the "
                    "files are incomplete or another version."
                )


def _has_languages(folder: Path) -> bool:
    return any((folder / code / "test.json").is_file() for code in XM3600_LANGUAGES)


def _captions(entry: Any) -> list[str]:
    texts = entry["caption"]
    if texts != [] and not is_texts(texts):
        raise TypeError(f"'caption' is {texts!r}")
    return [text.replace("\r", " ") for text in texts]


def _read_original(path: Path, image_root: Any) -> dict[str, CaptionedImages]:
    """Read one object per line: a key, and captions per language."""
    names: list[str] = []
    captions: list[dict[str, list[str]]] = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, path)
            if not is_text(entry["image/key"]):
                raise TypeError(f"'image/key' is {entry['image/key']!r}")
            codes = (code for code in XM3600_LANGUAGES if code in entry)
            found = {code: _captions(entry[code]) for code in codes}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} does not fit ({type(error).__name__}: "
                f"{error}); a line is an object with 'image/key' and per language "
                "an object with a list 'caption'."
            ) from error
        names.append(f"{entry['image/key']}.jpg")
        captions.append(found)
    if not names:
        raise unreadable(path, "a list of captioned pictures", "it has no lines")
    check_names(names, path, image_root)
    require_distinct(names, f"pictures of {path}")
    sets = {}
    for code in XM3600_LANGUAGES:
        # A picture without captions in a language is left out.
        rows = [row for row, found in enumerate(captions) if found.get(code)]
        texts = [captions[row][code] for row in rows]
        if rows:
            sets[code] = CaptionedImages(
                [names[row] for row in rows],
                TextColumn.from_texts(text for one in texts for text in one),
                [len(one) for one in texts],
                rows,
                image_root,
            )
    return sets
