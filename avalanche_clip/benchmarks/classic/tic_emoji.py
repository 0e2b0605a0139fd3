"""TiC-Emoji: emoji as they were released, drawn by three artists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_STEPS,
    VALIDATION_STYLE,
    EmojiPairs,
    check_styles,
    held_drawings,
    load_emoji_table,
    validation_mask,
)
from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    make_image_text_dataset,
)
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.streams.timed import time_stamped_benchmark
from avalanche_clip.common.checks import as_integer, require_choice


def emoji_dataset(
    styles: Sequence[str],
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    captions: Literal["name", "all"] = "name",
    language: str = "en",
) -> AvalancheDataset:
    """Emoji drawings with captions as an image-text data set.

    ``targets`` are the rows of the emoji table, so all drawings of an emoji
    share a target; ``sample_id`` tells drawings apart.

    :param styles: of ``"noto"``, ``"openmoji"`` and ``"twemoji"``.
    :param indices: rows of the emoji table; default all 1,911.
    :param captions: ``"name"``, or ``"all"`` for a list of name and keywords.
    :param language: code of the captions' language.
    """
    pairs = EmojiPairs(styles, indices, language=language, captions=captions)
    return make_image_text_dataset(
        pairs,
        sample_ids=pairs.sample_id,
        targets=pairs.emoji_index,
        timestamps=pairs.timestamps,
    )


def tic_emoji(
    *,
    styles: Sequence[str] = ("noto", "openmoji"),
    test_style: str = "twemoji",
    validation: bool = False,
    gallery: bool = True,
    first_step: int = 0,
) -> CLScenario:
    """Build the emoji stream in six time steps from 2010 to 2024.

    Steps: {2010}, {2014}, {2015}, {2016-17}, {2018-19}, {2020-24} with 719,
    139, 446, 264, 175 and 168 emoji. Training items are drawings in
    ``styles`` with name and keywords; test items are drawings in a style never
    trained on, with the name.

    Streams: ``train`` and ``test`` (one experience per step), ``valid`` when
    asked for (the OpenMoji drawing of a hashed 20 % of each step's emoji, kept
    out of training), and ``gallery`` (one experience: all 1,911 test items).
    With ``first_step=1`` the stream begins in 2014, for models that know 2010
    already (``pretrained="emoji-2010"`` or ``"icons"``), and the stream ``base`` holds
    the test sets of the steps before.

    :param styles: drawing styles to train on.
    :param test_style: drawing style of ``test`` and ``gallery``.
    :param validation: whether to hold out a validation stream.
    :param gallery: whether to add the stream ``gallery``.
    :param first_step: index of the time step that the stream begins with.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if the test style is also trained on, or a style is
        unknown, or there is no such step.

    Sources: Noto (Apache-2.0), OpenMoji (CC-BY-SA-4.0), Twemoji (CC-BY-4.0),
    CLDR (Unicode-3.0); see ``benchmarks/datasets/data/NOTICE``. The stream in
    time follows TiC-CLIP (arXiv 2310.16226); the data set is ours.
    """
    styles = check_styles(styles, test_style, validation)
    first_step = as_integer(first_step, "first_step")
    require_choice("first_step", first_step, range(len(EMOJI_STEPS)))
    table, steps = load_emoji_table(), EMOJI_STEPS[first_step:]
    later = np.flatnonzero(table.step >= first_step)
    streams = {}
    train = emoji_dataset(styles, later, captions="all")
    if validation:
        held = validation_mask(table.ids)
        out = held_drawings(attribute_array(train, "sample_id"), held)
        train = train.subset(np.flatnonzero(~out).tolist())
        streams["valid"] = emoji_dataset([VALIDATION_STYLE], later[held[later]])
    scenario = time_stamped_benchmark(
        train,
        boundaries=[step.start for step in steps[1:]],
        labels=[step.label for step in steps],
        test=emoji_dataset([test_style], later),
        **streams,
    )
    built = scenario.streams
    if first_step:
        earlier = (range(step, step + 1) for step in range(first_step))
        built["base"] = [_test_set(step, test_style) for step in earlier]
    if gallery:
        built["gallery"] = [_test_set(range(len(EMOJI_STEPS)), test_style)]
    return make_scenario(built, scenario)


def _test_set(steps: range, style: str) -> DatasetExperience:
    """A test set with the emoji of some consecutive steps."""
    chosen = np.flatnonzero(np.isin(load_emoji_table().step, steps))
    return _experience(emoji_dataset([style], chosen), steps)


def _experience(dataset: AvalancheDataset, steps: range) -> DatasetExperience:
    """An experience that knows which time steps it holds."""
    first, last = EMOJI_STEPS[steps[0]], EMOJI_STEPS[steps[-1]]
    single, whole = len(steps) == 1, len(steps) == len(EMOJI_STEPS)
    return make_experience(
        dataset,
        time_label=first.label if single else f"{first.label}..{last.label}",
        time_start=-np.inf if whole else first.bounds[0],
        time_end=np.inf if whole else last.bounds[1],
    )


def tic_emoji_joint(
    *, styles: Sequence[str] = ("noto", "openmoji"), test_style: str = "twemoji"
) -> CLScenario:
    """Build the emoji world with all time steps in one experience.

    The upper bound of a stream: one training on everything. The streams
    ``test`` (per time step) and ``gallery`` are those of :func:`tic_emoji`.

    :param styles: drawing styles to train on.
    :param test_style: drawing style of the test streams.
    """
    scenario = tic_emoji(styles=styles, test_style=test_style)
    data = emoji_dataset(styles, captions="all")
    whole = _experience(data, range(len(EMOJI_STEPS)))
    return make_scenario(
        {**scenario.streams, "train": [whole]}, time_labels=[whole.time_label]
    )
