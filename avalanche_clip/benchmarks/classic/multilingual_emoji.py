"""Multilingual emoji: the same pictures named in one language after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_LANGUAGES,
    EMOJI_STYLES,
    VALIDATION_STYLE,
    EmojiPairs,
    check_languages,
    check_styles,
    held_drawings,
    load_emoji_table,
    validation_mask,
)
from avalanche_clip.benchmarks.items.facts import with_facts
from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    make_image_text_dataset,
)
from avalanche_clip.benchmarks.streams.languages import multilingual_benchmark
from avalanche_clip.common.checks import as_finite, as_size, require_choice

QUICK_LANGUAGES = EMOJI_LANGUAGES[:6]
UNNAMED = ("drop", "common", "raise")


def language_order(languages: Sequence[str], seed: int = 222) -> tuple[str, ...]:
    """Shuffle languages with Python's generator and put English first.

    With the 36 languages of XM3600 and the default seed this is the task order
    of CLL-CLIP (arXiv 2401.17186). Python's global generator is left alone.

    :param languages: codes; they are sorted first, so their order is no matter.
    :param seed: of the shuffle.
    :return: the order; English first where it is among them.

    >>> language_order(EMOJI_LANGUAGES) == EMOJI_LANGUAGES
    True
    """
    order = sorted(languages)
    random.Random(seed).shuffle(order)
    return tuple(sorted(order, key=lambda code: code != "en"))


class EmojiTriplets(EmojiPairs):
    """Drawings with captions in one language, and the English name beside.

    Parameters and columns are those of :class:`EmojiPairs`.
    """

    def text(self, item: int) -> str | list[str]:
        """Return the caption or captions of an item without its drawing."""
        return self._text(item % len(self.indices))

    def english(self, item: int) -> str:
        """Return the English name, the caption that a teacher sees."""
        return self._table.names[int(self.indices[item % len(self.indices)])]

    def image_name(self, item: int) -> str:
        """Return a name of the drawing that is unique in the emoji world."""
        style, position = divmod(item, len(self.indices))
        return f"{self.styles[style]}/{self._table.ids[int(self.indices[position])]}"


def emoji_language_dataset(
    language: str,
    styles: str | Sequence[str],
    emoji: npt.ArrayLike | None = None,
    *,
    captions: Literal["name", "all"] = "name",
    unnamed: Literal["drop", "raise"] = "drop",
) -> AvalancheDataset:
    """Emoji drawings captioned in one language as an image-text data set.

    Facts: ``sample_id`` (unique over languages and styles), ``targets`` (row of
    the emoji table), ``language`` (position in ``EMOJI_LANGUAGES``),
    ``image_id`` (the same for a drawing in all languages) and ``text_id`` (row of
    the English name); all travel with the item.

    :param language: one of ``EMOJI_LANGUAGES``.
    :param styles: of ``"noto"``, ``"openmoji"`` and ``"twemoji"``.
    :param emoji: rows of the emoji table; default all 1,911.
    :param captions: ``"name"``, or ``"all"`` for a list of name and keywords.
    :param unnamed: leave emoji without a name in this language out, or raise.
    :raises ValueError: for an unknown language, style or row, or emoji without
        a name with ``unnamed="raise"``.
    """
    table = load_emoji_table()
    chosen = np.arange(len(table)) if emoji is None else np.asarray(emoji)
    if unnamed == "drop":
        chosen = chosen[table.named(language)[chosen]]
    pairs = EmojiTriplets(styles, chosen, language=language, captions=captions)
    code = EMOJI_LANGUAGES.index(language)
    dataset = make_image_text_dataset(
        pairs,
        sample_ids=code * len(EMOJI_STYLES) * len(table) + pairs.sample_id,
        targets=pairs.emoji_index,
        timestamps=pairs.timestamps,
        languages=np.full(len(pairs), code),
    )
    return with_facts(
        dataset, {"image_id": pairs.sample_id, "text_id": pairs.emoji_index}
    )


def multilingual_emoji(
    languages: int | Sequence[str] | None = None,
    *,
    emoji: npt.ArrayLike | None = None,
    styles: Sequence[str] = ("noto", "openmoji"),
    test_style: str = "twemoji",
    captions: Literal["name", "all"] = "all",
    unnamed: Literal["drop", "common", "raise"] = "drop",
    validation: bool = False,
) -> CLScenario:
    """Build the stream that names emoji in 36 languages, one after the other.

    The languages are those of XM3600 in the task order of CLL-CLIP, English
    first. Every language shows the same drawings; training items have name and
    keywords (:class:`RandomCaption` draws one), test items the name with a
    drawing in a style never trained on. Streams: ``train``, ``test`` and, when
    asked for, ``valid``: the OpenMoji drawings of a hashed 20 % of the emoji, the
    same in each language, kept out of training.

    Languages do not name every emoji: of all 1,911, Danish 1,646, Maori 1,565,
    Quechua 1,624 and the others at least 1,908. ``unnamed`` says what becomes of
    the rest: ``"drop"`` leaves them out of the language (its test set is then
    smaller, and so a little easier), ``"common"`` keeps the emoji that all
    chosen languages name, ``"raise"`` refuses them.

    Beside what :func:`multilingual_benchmark` attaches, the scenario has
    ``teacher_source``: an English data set of all drawings and names in use, for
    :func:`precompute_teacher_features`, and ``teacher_captions``: the English names,
    indexed by ``text_id``.

    :param languages: codes in the order of learning, or a number: the first so
        many of the task order (6 for a quick run); default all 36. Integer codes
        are positions in ``EMOJI_LANGUAGES`` whatever is chosen.
    :param emoji: rows of the emoji table; default the 719 emoji of 2010, which
        the weights ``emoji-2010`` know in English.
    :param styles: drawing styles to train on.
    :param test_style: drawing style of ``test``.
    :param captions: of training items: ``"all"`` or ``"name"``.
    :param unnamed: see above.
    :param validation: whether to hold out the stream ``valid``.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: for unknown or repeated languages or styles, a test style
        that is also trained on, or emoji that a language does not name.

    Sources: see ``benchmarks/datasets/data/NOTICE``. The protocol follows Yang
    et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186); the data set is ours.
    """
    codes = _languages(languages)
    require_choice("unnamed", unnamed, UNNAMED)
    styles = check_styles(styles, test_style, validation)
    table = load_emoji_table()
    rows = np.flatnonzero(table.step == 0) if emoji is None else np.asarray(emoji)
    if unnamed == "common":
        rows = rows[np.all([table.named(code)[rows] for code in codes], axis=0)]
    rule: Literal["drop", "raise"] = "drop" if unnamed == "drop" else "raise"
    held = validation_mask(table.ids)
    build = partial(emoji_language_dataset, unnamed=rule)
    streams: dict[str, Any] = {
        "train": {code: build(code, styles, rows, captions=captions) for code in codes},
        "test": {code: build(code, test_style, rows) for code in codes},
    }
    if validation:
        for code, whole in streams["train"].items():
            out = held_drawings(attribute_array(whole, "image_id"), held)
            streams["train"][code] = whole.subset(np.flatnonzero(~out).tolist())
        few = rows[held[rows]]
        streams["valid"] = {c: build(c, VALIDATION_STYLE, few) for c in codes}
    scenario = multilingual_benchmark(
        order=codes,
        languages={code: EMOJI_LANGUAGES.index(code) for code in codes},
        **streams,
    )
    scenario.teacher_captions = table.names
    scenario.teacher_source = emoji_language_dataset("en", [*styles, test_style], rows)
    return scenario


def _languages(languages: int | Sequence[str] | None) -> tuple[str, ...]:
    if languages is None:
        return EMOJI_LANGUAGES
    if not isinstance(languages, (int, np.integer)):
        return check_languages(languages)
    count = as_size(languages, "languages", hint="or a list of codes")
    as_finite(count, "languages", low=1, high=len(EMOJI_LANGUAGES))
    return EMOJI_LANGUAGES[:count]
