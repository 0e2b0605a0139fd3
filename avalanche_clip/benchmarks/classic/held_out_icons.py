"""Held-out icons: a test of what a model knows, outside all streams of emoji."""

from __future__ import annotations

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons
from avalanche_clip.benchmarks.items.items import make_image_text_dataset


def held_out_icons() -> AvalancheDataset:
    """Icons of 968 names that no shipped model was taught, as an image-text data set.

    Zero-shot knowledge that no stream of emoji teaches: what a method keeps of it is
    what it does not forget of the base. Each name has one drawing, so that R@1 from
    image to text is the accuracy with all names as classes (chance 0.1 %).

    Facts are those of :func:`emoji_dataset`: ``sample_id`` and ``targets`` count from
    500,000, where no emoji's are; ``timestamp`` is NaN, since icons have no date.

    As a test of a stream beside its own:

    >>> from avalanche_clip.benchmarks import make_experience, make_scenario, tic_emoji
    >>> stream = tic_emoji(first_step=1)
    >>> icons = make_experience(held_out_icons(), time_label="icons")
    >>> stream = make_scenario({**stream.streams, "icons": [icons]}, stream)
    >>> [len(experience.dataset) for experience in stream.streams["icons"]]
    [968]

    Then ``run_stream(..., streams=("test", "icons"))`` evaluates on both. Names as
    classes: ``ClassPrompts(HeldOutIcons().names, templates)``; class ``i`` is the name
    of drawing ``i``.

    Sources and licences: ``benchmarks/datasets/data/NOTICE_icons``.
    """
    icons = HeldOutIcons()
    return make_image_text_dataset(
        icons,
        sample_ids=icons.sample_id,
        targets=icons.sample_id,
        timestamps=np.full(len(icons), np.nan),
    )
