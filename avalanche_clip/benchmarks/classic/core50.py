"""CORe50: the same ten categories under other conditions, one session at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario
from torch.utils.data import ConcatDataset

from avalanche_clip.benchmarks.datasets.core50 import CORE50_TEST_SESSIONS, read_core50
from avalanche_clip.benchmarks.datasets.mtil.templates import CIL_TEMPLATES
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.benchmarks.streams.classes import class_experience, labelled_dataset


def core50(
    root: str | Path,
    *,
    templates: str | Sequence[str] = CIL_TEMPLATES["CORe50"],
    check: str = "warn",
) -> CLScenario:
    """Build CORe50 as a domain-incremental stream.

    ``train`` has an experience for each of the sessions 1, 2, 4, 5, 6, 8, 9 and 11;
    ``test`` all images of the sessions 3, 7 and 10, whose conditions are never
    learned, as one experience; ``test_sessions`` these three apart. All ten classes
    (plug adapters, mobile phones, ...) occur everywhere, so all label spaces agree.
    ``dataset_index`` of an experience is its session, 0 for all test sessions.

    :param root: directory with ``s1`` to ``s11``, see :func:`read_core50`.
    :param templates: default ``a good photo of a {}.``
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the numbers of images
        are not the published ones.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if the data are missing.

    Source: Lomonaco and Maltoni, CoRL 2017; names, template and test sessions are
    those of Continual-CLIP (Thengane et al., arXiv 2210.03114).
    """
    data = read_core50(root, check=check)
    prompts = ClassPrompts(data.class_names, templates)
    tests: Any = {k: data.sessions.pop(k) for k in CORE50_TEST_SESSIONS}
    test: Any = {0: ConcatDataset(tests.values())}
    given = {"train": data.sessions, "test": test, "test_sessions": tests}
    streams: dict[str, list[Any]] = {name: [] for name in given}
    first_id = 0
    for name, parts in given.items():
        for session, images in parts.items():
            label = f"session {session}" if session else "test sessions"
            where = f"{label} of stream {name!r}"
            dataset = labelled_dataset(where, images, prompts, first_id)
            first_id += len(dataset)
            part = dataset if name == "train" else dataset.eval()
            facts: Any = label, prompts, prompts.ids
            streams[name].append(class_experience(part, *facts, dataset_index=session))
    return make_scenario(streams, class_prompts=prompts, protocol="domain_incremental")
