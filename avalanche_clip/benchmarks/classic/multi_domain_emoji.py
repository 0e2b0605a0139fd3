"""Multi-domain emoji: groups of emoji as domains, their names as classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience

from avalanche_clip.benchmarks.datasets.emoji import (
    VALIDATION_STYLE,
    EmojiPairs,
    check_styles,
    held_drawings,
    load_emoji_table,
    validation_mask,
)
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.benchmarks.streams.classes import (
    Domain,
    class_experience,
    labelled_dataset,
    multi_domain_benchmark,
)

REFERENCE_DOMAIN = "2010"


class EmojiClasses:
    """Drawings of some emoji, each of which is a class, or belongs to one.

    :param styles: drawing styles, one after the other.
    :param indices: rows of the emoji table.
    :param labels: label of each of these emoji; default its place among them.
    :param held: bool per emoji of the table; with ``keep_held`` only the validation
        drawings of these are held, otherwise all but these.
    """

    def __init__(
        self,
        styles: Sequence[str],
        indices: np.ndarray,
        held: np.ndarray | None = None,
        keep_held: bool = False,
        labels: np.ndarray | None = None,
    ):
        self.pairs = EmojiPairs(styles, indices)
        own = np.arange(len(indices)) if labels is None else labels
        labels = np.tile(own, len(self.pairs.styles))
        rows = np.arange(len(labels))
        if held is not None:
            mask = held_drawings(self.pairs.sample_id, held)
            rows = np.flatnonzero(mask if keep_held else ~mask)
        self.rows = rows
        self.targets = labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pairs[int(self.rows[index])][0], int(self.targets[index])


def multi_domain_emoji(
    *,
    order: Sequence[int] | None = None,
    shots: int | None = None,
    seed: int = 0,
    styles: str | Sequence[str] = ("noto", "openmoji"),
    test_style: str = "twemoji",
    templates: str | Sequence[str] = "{}",
    validation: bool = False,
) -> CLScenario:
    """Build the stream of emoji groups, with emoji names as classes.

    The 1,192 emoji released after 2010 in 9 domains: Smileys & Emotion, People
    & Body (with Component), Animals & Nature, Food & Drink, Travel & Places,
    Activities, Objects, Symbols, Flags; 86, 327, 96, 73, 116, 41, 134, 62 and
    257 classes. Training images are drawings in ``styles``, test images those
    of a style never trained on.

    Streams: ``train`` and ``test`` (an experience per domain), ``valid`` when
    asked for (the OpenMoji drawing of a hashed 20 % of the emoji, kept out of
    training), ``reference`` and ``reference_test``: the 719 emoji of 2010 with
    their names, in the training styles and in the test style, as one
    experience each. They are what the ``emoji-2010`` models know (the ``icons`` models
    know more) and no part of the stream; their class ids follow those of the stream,
    in a domain of the name ``"2010"``, and ``class_prompts`` of the scenario leaves
    them out.

    :param order: indices of the domains in the order of learning.
    :param shots: training drawings per emoji (there is one per style).
    :param seed: of that choice.
    :param styles: drawing styles to train on, one or several.
    :param test_style: drawing style of the test streams.
    :param templates: prompt templates; the default is the name alone, as the
        shipped models were trained.
    :param validation: whether to hold out a validation stream.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: for an unknown style, a test style that is trained on,
        or a validation stream without its style in training.

    Sources: see :func:`tic_emoji`; the protocol is that of ZSCL (arXiv
    2303.06628), the data set is ours.
    """
    styles = [styles] if isinstance(styles, str) else styles
    styles = check_styles(styles, test_style, validation)
    templates = templates if isinstance(templates, str) else tuple(templates)
    if validation and len(styles) < 2:
        raise ValueError(
            f"Validation holds out drawings of emoji that another style shows in "
            f"training; got styles={styles}."
        )
    table = load_emoji_table()
    domains: list[Domain] = []
    streams: dict[str, list[EmojiClasses]] = {"valid": []} if validation else {}
    held = validation_mask(table.ids) if validation else None
    for group, name in enumerate(table.groups):
        rows = np.flatnonzero((table.group == group) & (table.step > 0))
        names = [table.names[row] for row in rows]
        train, test = EmojiClasses(styles, rows, held), EmojiClasses([test_style], rows)
        domains.append(Domain(train, test, names, templates, name))
        if validation:
            valid = EmojiClasses([VALIDATION_STYLE], rows, held, keep_held=True)
            streams["valid"].append(valid)
    scenario = multi_domain_benchmark(
        domains, order=order, shots=shots, seed=seed, **streams
    )
    references = _reference_streams(scenario, styles, test_style, templates)
    return make_scenario({**scenario.streams, **references}, scenario)


def _reference_streams(
    scenario: CLScenario,
    styles: Sequence[str],
    test_style: str,
    templates: str | Sequence[str],
) -> dict[str, list[DatasetExperience]]:
    """Streams of the emoji that the shipped models know."""
    table = load_emoji_table()
    rows = np.flatnonzero(table.step == 0)
    known = ClassPrompts(
        [table.names[row] for row in rows], templates, domains=REFERENCE_DOMAIN
    )
    prompts = ClassPrompts.merge([scenario.class_prompts, known])
    own = prompts.for_ids(prompts.ids_of(REFERENCE_DOMAIN))
    first_id = 1 + max(
        int(attribute_array(experience.dataset, "sample_id").max())
        for stream in scenario.streams.values()
        for experience in stream
    )
    streams = {}
    task = len(table.groups)
    for name, chosen in (("reference", styles), ("reference_test", [test_style])):
        data = EmojiClasses(chosen, rows)
        dataset = labelled_dataset(f"{name} set", data, own, first_id, task).eval()
        first_id += len(data)
        experience = class_experience(
            dataset, REFERENCE_DOMAIN, prompts, own.ids, dataset_index=task
        )
        streams[name] = [experience]
    return streams
