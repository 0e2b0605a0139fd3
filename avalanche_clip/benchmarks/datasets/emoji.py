"""Reader of the embedded emoji world: three drawings, 36 languages, 2010-2024.

1,911 emoji without skin tones, each drawn by three independent teams, released
in 16 dated versions, sorted into 9 groups and about 100 subgroups, and named in
36 languages. Everything ships with the package: about 3.6 MB of images and
1.4 MB of text, read on first use. ``tools/build_emoji_data.py`` makes the files;
``data/NOTICE`` states their licences.

Emoji are indexed by release date, then in Unicode's order, so that index ``i``
means the same emoji in every table and data set of this module. This module
needs NumPy and Pillow only.

Names are unique, drawings are not quite: some flags (Norway, Svalbard) and many
families look alike. At a root mean square below 3 of 255, 25 Noto, 75 OpenMoji
and 29 Twemoji drawings have a twin, which bounds image-to-text recall at 1 a
little below 1.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.shipped import (
    TILE_SIZE,
    read_data,
    read_sheet,
    reading,
)
from avalanche_clip.common.checks import (
    as_finite,
    did_you_mean,
    require_choice,
    require_distinct,
    require_indices,
    require_known,
    require_some,
)
from avalanche_clip.common.columns import as_integer_array

EMOJI_SIZE = TILE_SIZE

EMOJI_STYLES = ("noto", "openmoji", "twemoji")

# The task order of CLL-CLIP (arXiv 2401.17186), English first.
EMOJI_LANGUAGES = (
    *("en", "it", "de", "fil", "tr", "uk", "nl", "bn", "he", "fi", "sv", "quz"),
    *("fa", "mi", "fr", "el", "zh", "id", "sw", "no", "hi", "da", "te", "th"),
    *("pt", "ru", "ro", "pl", "hr", "es", "vi", "ar", "cs", "ko", "ja", "hu"),
)


def check_languages(languages: Sequence[str]) -> tuple[str, ...]:
    """Return codes of languages, distinct ones out of :data:`EMOJI_LANGUAGES`.

    :raises ValueError: for anything else.
    """
    codes = () if isinstance(languages, (str, bool)) else tuple(languages)
    unknown = [code for code in codes if code not in EMOJI_LANGUAGES]
    if not codes or unknown or len(set(codes)) < len(codes):
        raise ValueError(
            f"languages={languages!r} must be distinct codes out of "
            f"{', '.join(EMOJI_LANGUAGES)}.{did_you_mean(unknown, EMOJI_LANGUAGES)}"
        )
    return codes


def _timestamp(day: date) -> float:
    """Return midnight UTC of a day as seconds since 1970."""
    return float(np.datetime64(day, "s").astype(np.int64))


class EmojiStep(NamedTuple):
    """One time step: the half-open interval ``[start, end)`` of release days."""

    label: str
    start: date
    end: date

    @property
    def bounds(self) -> tuple[float, float]:
        """Both boundaries as float seconds UTC."""
        return _timestamp(self.start), _timestamp(self.end)


EMOJI_STEPS = (
    EmojiStep("2010", date(2010, 1, 1), date(2014, 1, 1)),
    EmojiStep("2014", date(2014, 1, 1), date(2015, 1, 1)),
    EmojiStep("2015", date(2015, 1, 1), date(2016, 1, 1)),
    EmojiStep("2016-2017", date(2016, 1, 1), date(2018, 1, 1)),
    EmojiStep("2018-2019", date(2018, 1, 1), date(2020, 1, 1)),
    EmojiStep("2020-2024", date(2020, 1, 1), date(2025, 1, 1)),
)


_TABLE = "emoji_table.jsonl.gz"


def _read_only(values: Iterable[Any], dtype: type) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.array(list(values), dtype=dtype)
    array.flags.writeable = False
    return array


class EmojiTable:
    """Columns that describe the emoji; row ``i`` of each is emoji ``i``.

    Obtained from :func:`load_emoji_table`. Arrays are read-only and shared.
    A copy or a pickle refers to the table of its process and holds no data.

    :ivar ids: code points, such as ``"1F1E9-1F1EA"``; unique.
    :ivar chars: the emoji as strings.
    :ivar names: English names; unique.
    :ivar versions: Emoji version that introduced it, such as ``"0.6"``.
    :ivar timestamps: release day, float64 ``(N,)``, seconds UTC at midnight.
    :ivar step: index into :data:`EMOJI_STEPS`, int64 ``(N,)``.
    :ivar group: index into ``groups``, int64 ``(N,)``.
    :ivar groups: names of the 9 groups.
    :ivar subgroup: index into ``subgroups``, int64 ``(N,)``.
    :ivar subgroups: names of the subgroups.

    Source: Unicode CLDR (names, keywords), emoji-datasource (versions,
    groups). The 5 emoji of group "Component" count as "People & Body" (our
    choice: they are too few for a domain).
    """

    def __init__(self, header: dict[str, Any], languages: dict[str, bytes]) -> None:
        """Decode the header; languages are decoded when first asked for.

        :param header: the first object of the table file.
        :param languages: language code -> its JSON object, still encoded.
        """
        dates = {
            version: _timestamp(date.fromisoformat(day))
            for version, day in header["release_dates"].items()
        }
        self._languages = languages
        self._decoded: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
        self.ids: tuple[str, ...] = tuple(header["id"])
        self.chars = tuple(
            "".join(chr(int(point, 16)) for point in i.split("-")) for i in self.ids
        )
        self.versions: tuple[str, ...] = tuple(header["version"])
        self.timestamps = _read_only((dates[v] for v in self.versions), np.float64)
        starts = [step.bounds[0] for step in EMOJI_STEPS]
        steps = np.searchsorted(starts, self.timestamps, side="right") - 1
        self.step = _read_only(steps, np.int64)
        self.group = _read_only(header["group"], np.int64)
        self.groups: tuple[str, ...] = tuple(header["groups"])
        self.subgroup = _read_only(header["subgroup"], np.int64)
        self.subgroups: tuple[str, ...] = tuple(header["subgroups"])

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_emoji_table, ()

    @property
    def names(self) -> tuple[str, ...]:
        """English names; every emoji has one."""
        return self.captions("en")  # type: ignore[return-value]

    def captions(self, language: str = "en") -> tuple[str | None, ...]:
        """Return the names in one language, None where CLDR has none.

        :param language: one of :data:`EMOJI_LANGUAGES`.
        :raises ValueError: if the language is not one of them.

        >>> load_emoji_table().captions("fr")[0]
        'visage souriant avec de grands yeux'
        """
        return self._language(language)[0]

    def keywords(self, language: str = "en") -> tuple[tuple[str, ...], ...]:
        """Return the keywords in one language, possibly none for an emoji.

        A keyword never repeats the name or another keyword of its emoji.

        :param language: one of :data:`EMOJI_LANGUAGES`.
        :raises ValueError: if the language is not one of them.
        """
        return self._language(language)[1]

    def named(self, language: str = "en") -> npt.NDArray[np.bool_]:
        """Mark the emoji that have a name in one language, bool ``(N,)``."""
        return np.array([name is not None for name in self.captions(language)])

    def _language(self, language: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        require_choice("language", language, EMOJI_LANGUAGES)
        if language not in self._decoded:
            with reading(_TABLE):
                content = json.loads(self._languages[language])
                keywords = tuple(tuple(words) for words in content["keywords"])
                names = tuple(content["names"])
                if not len(names) == len(keywords) == len(self):
                    raise ValueError(f"{language!r} has {len(names)} names")
            self._decoded[language] = (names, keywords)
        return self._decoded[language]


@functools.cache
def load_emoji_table() -> EmojiTable:
    """Return the table of all emoji, read once per process.

    >>> table = load_emoji_table()
    >>> len(table), table.names[0], table.versions[0]
    (1911, 'grinning face with big eyes', '0.6')
    """
    content = read_data(_TABLE)
    with reading(_TABLE):
        first, *rest = gzip.decompress(content).splitlines()
        header = json.loads(first)
        return EmojiTable(header, dict(zip(header["languages"], rest, strict=True)))


@functools.cache
def _load_sheet(style: str) -> npt.NDArray[np.uint8]:
    """Decode a style's sheet to uint8 ``(N, 48, 48, 3)``, once per process."""
    return read_sheet(f"emoji_{style}.webp", len(load_emoji_table()))


def _check_indices(indices: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    """Return emoji indices as int64 ``(K,)``; None means all."""
    total = len(load_emoji_table())
    given = np.arange(total) if indices is None else indices
    give = "for a mask use numpy.flatnonzero"
    array = as_integer_array(given, "indices", give=give)
    require_indices(array, total, "indices")
    return array


class EmojiImages:
    """Map-style data set of one style's drawings, 48 x 48 pixels on white.

    The decoded sheet (13 MB) is loaded once per process and shared by all
    instances. Pickling an instance stores no pixels, so that spawned workers
    read the sheet themselves.

    :param style: one of :data:`EMOJI_STYLES`.
    :param indices: emoji to hold, flat integers; None for all.
    :raises ValueError: for an unknown style or a bad index.

    >>> EmojiImages("noto", [0])[0].size
    (48, 48)
    """

    def __init__(self, style: str, indices: npt.ArrayLike | None = None) -> None:
        require_choice("style", style, EMOJI_STYLES)
        self.style = style
        self.indices = _check_indices(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Image.Image:
        """Return drawing ``item`` as a new image.

        :raises IndexError: if ``item`` is out of range.
        """
        return Image.fromarray(_load_sheet(self.style)[self.indices[item]])


class EmojiPairs:
    """Map-style data set of (drawing, caption) pairs, style by style.

    Item ``k`` shows emoji ``indices[k % len(indices)]`` in style
    ``styles[k // len(indices)]``. Images load lazily; per-sample facts are
    columns. Memory: two int64 per sample, beside the shared table and sheets.

    :param styles: one style or several distinct ones of :data:`EMOJI_STYLES`.
    :param indices: emoji to hold, flat integers; None for all.
    :param language: one of :data:`EMOJI_LANGUAGES`.
    :param captions: ``"name"`` gives the name (str), ``"all"`` a list that
        starts with the name and goes on with the keywords.
    :raises ValueError: for an unknown or repeated style, an unknown language,
        a bad index, or an emoji without a name in that language.

    :ivar sample_id: int64 ``(len,)``, position of the style in
        :data:`EMOJI_STYLES` times 1911 plus the emoji's index. It depends
        neither on language nor on which other samples are held.
    :ivar emoji_index: int64 ``(len,)``, row in :class:`EmojiTable`.
    :ivar style_code: int64 ``(len,)``, position in :data:`EMOJI_STYLES`.
    :ivar timestamps: float64 ``(len,)``, release day, seconds UTC.

    >>> EmojiPairs("noto", [0], language="de")[0][1]
    'grinsendes Gesicht mit großen Augen'
    """

    def __init__(
        self,
        styles: str | Sequence[str],
        indices: npt.ArrayLike | None = None,
        language: str = "en",
        captions: Literal["name", "all"] = "name",
    ) -> None:
        self.styles = (styles,) if isinstance(styles, str) else tuple(styles)
        require_some(self.styles, "styles")
        require_distinct(self.styles, "styles")
        require_choice("captions", captions, ("name", "all"))
        self._images = {s: EmojiImages(s, indices) for s in self.styles}
        self.indices = self._images[self.styles[0]].indices
        self.language = language
        self.captions = captions
        self._table = load_emoji_table()
        missing = int((~self._table.named(language)[self.indices]).sum())
        if missing:
            raise ValueError(
                f"language {language!r} has no name for {missing} of the "
                f"{len(self.indices)} emoji; keep the indices where "
                f"load_emoji_table().named({language!r}) is True."
            )

    @property
    def emoji_index(self) -> npt.NDArray[np.int64]:
        """Row of each sample in the table."""
        return np.tile(self.indices, len(self.styles))

    @property
    def style_code(self) -> npt.NDArray[np.int64]:
        """Position of each sample's style in :data:`EMOJI_STYLES`."""
        codes = [EMOJI_STYLES.index(style) for style in self.styles]
        return np.repeat(np.array(codes, dtype=np.int64), len(self.indices))

    @property
    def sample_id(self) -> npt.NDArray[np.int64]:
        """Stable identifier of each (style, emoji) pair."""
        return self.style_code * len(self._table) + self.emoji_index

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """Release day of each sample's emoji, seconds UTC."""
        return self._table.timestamps[self.emoji_index]

    def __len__(self) -> int:
        return len(self.styles) * len(self.indices)

    def __getitem__(self, item: int) -> tuple[Image.Image, str | list[str]]:
        """Return the drawing and the caption or captions of one sample.

        :raises IndexError: if ``item`` is out of range.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} is out of range for {len(self)} samples.")
        style, position = divmod(item % len(self), len(self.indices))
        return self._images[self.styles[style]][position], self._text(position)

    def _text(self, position: int) -> str | list[str]:
        emoji = self.indices[position]
        name = self._table.captions(self.language)[emoji]
        assert name is not None  # checked at construction
        if self.captions == "name":
            return name
        return [name, *self._table.keywords(self.language)[emoji]]


VALIDATION_STYLE = "openmoji"
VALIDATION_FRACTION = 0.2


def check_styles(
    styles: Sequence[str], test_style: str, validation: bool
) -> tuple[str, ...]:
    """Return the styles of a stream, which is tested on another one.

    :param styles: to train on, a list.
    :param test_style: never trained on.
    :param validation: whether drawings in :data:`VALIDATION_STYLE` are held out.
    :raises ValueError: if one is unknown, or they do not go together.
    """
    if isinstance(styles, str):
        raise ValueError(f"styles={styles!r} is one string; give a list of styles.")
    chosen = tuple(styles)
    require_some(chosen, "styles")
    require_known((*chosen, test_style), EMOJI_STYLES, "styles")
    if test_style in chosen:
        raise ValueError(
            f"test_style={test_style!r} is also trained on; the test is a style never "
            "seen. Leave it out of styles."
        )
    if validation and VALIDATION_STYLE not in chosen:
        raise ValueError(
            f"Validation holds out drawings in {VALIDATION_STYLE!r}; train on it."
        )
    return chosen


def held_drawings(
    sample_ids: npt.NDArray[np.int64], held: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark the drawings that validation keeps out of training, bool ``(N,)``.

    :param sample_ids: of :class:`EmojiPairs`.
    :param held: of :func:`validation_mask`, for all emoji.
    """
    style, row = np.divmod(sample_ids, len(held))
    return (style == EMOJI_STYLES.index(VALIDATION_STYLE)) & held[row]


def validation_mask(
    ids: Iterable[str], fraction: float = VALIDATION_FRACTION, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Choose emoji for validation by a hash of their id.

    An emoji's choice depends on its own id and the seed only: it stays the same
    in every time step, language and subset, and on every machine. The chosen
    share equals ``fraction`` in expectation; a larger fraction only adds emoji.

    :param ids: emoji ids, as in ``EmojiTable.ids``.
    :param fraction: share to choose, in ``[0, 1]``.
    :param seed: another seed gives an independent choice.
    :return: bool array of shape ``(len(ids),)``, True for validation.
    :raises ValueError: if ``fraction`` is outside ``[0, 1]``.

    >>> int(validation_mask(load_emoji_table().ids).sum())
    372
    """
    fraction = as_finite(fraction, "fraction", low=0, high=1)
    if isinstance(ids, str):
        raise ValueError("ids is one string; give a sequence of emoji ids.")
    limit = fraction * 2.0**64

    def chosen(emoji_id: str) -> bool:
        digest = hashlib.blake2b(f"{seed}:{emoji_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < limit

    return np.array([chosen(i) for i in ids], dtype=np.bool_)
