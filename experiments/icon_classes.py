"""Held-out icons as classes, beside the streams of a scenario on class names."""

from __future__ import annotations

from typing import Any

import numpy as np


class IconClasses:
    """Held-out icons, each of which is a class."""

    def __init__(self, icons: Any):
        self.icons, self.targets = icons, np.arange(len(icons))

    def __len__(self) -> int:
        return len(self.icons)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.icons[index][0], index


def with_icons(scenario: Any) -> Any:
    """Add stream ``icons``: drawings of held-out names, each of which is a class."""
    from avalanche_clip.benchmarks import ClassPrompts
    from avalanche_clip.benchmarks.datasets.icons import FIRST_ICON_ID, HeldOutIcons
    from avalanche_clip.benchmarks.items.scenario import make_scenario
    from avalanche_clip.benchmarks.streams.classes import (
        class_experience,
        labelled_dataset,
    )

    icons = HeldOutIcons()
    (known,) = scenario.streams["reference_test"]
    names = ClassPrompts(icons.names, "{}", domains="icons")
    prompts = ClassPrompts.merge([known.class_prompts, names])
    own = prompts.for_ids(prompts.ids_of("icons"))
    task = known.dataset_index + 1
    source = "held-out icons", IconClasses(icons), own, FIRST_ICON_ID
    data = labelled_dataset(*source, task).eval()
    found = class_experience(data, "icons", prompts, own.ids, dataset_index=task)
    return make_scenario({**scenario.streams, "icons": [found]}, scenario)
