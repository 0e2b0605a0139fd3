"""Read CORe50 (128 x 128): 50 objects of 10 categories, filmed in 11 sessions.

Layout, as the archive ``core50_128x128.zip`` unpacks::

    <root>/s1/o1/C_01_01_000.png        session, object, number of the frame
    ...
    <root>/s11/o50/C_11_50_299.png

Objects 1 to 5 are of the first category, 6 to 10 of the second, and so on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avalanche_clip.benchmarks.datasets.mtil.images import ClassImages
from avalanche_clip.benchmarks.datasets.mtil.readers import CHECKS, check_counts
from avalanche_clip.benchmarks.datasets.mtil.table import DatasetFacts
from avalanche_clip.common.checks import require_choice

CORE50_NAMES = (
    *("plug adapters", "mobile phones", "scissors", "light bulbs", "cans"),
    *("glasses", "balls", "markers", "cups", "remote controls"),
)
"""Names of the ten categories, in their order, as Continual-CLIP writes them."""

CORE50_TEST_SESSIONS = (3, 7, 10)
"""The sessions that are tests; the other eight are learned."""

_SESSIONS = range(1, 12)
_OBJECTS = range(1, 51)
_NAME = re.compile(r"C_(\d\d)_(\d\d)_\d{3}\.png")
_FACTS = DatasetFacts(
    "CORe50",
    (10, 119894, 44972),
    (),
    "s1/o1/C_01_01_000.png to s11/o50/C_11_50_299.png",
    "https://vlomonaco.github.io/core50 (core50_128x128.zip)",
    downloadable=False,
)


class Core50(NamedTuple):
    """CORe50 by sessions.

    :ivar sessions: number of the session, 1 to 11 -> its images, by object and
        frame; targets are categories, 0 to 9.
    :ivar class_names: names of the categories.
    """

    sessions: dict[int, ClassImages]
    class_names: tuple[str, ...]


def read_core50(root: str | Path, *, check: str = "warn") -> Core50:
    """Read all sessions of CORe50; no image is decoded.

    :param root: directory with ``s1`` to ``s11``, usually ``core50_128x128``.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the numbers of images
        are not the published ones (119,894 to learn, 44,972 to test).
    :raises FileNotFoundError: if folders are missing or have no image.
    :raises ValueError: if a picture has a name of another form, or lies in the
        folder of another session or object.

    Source: Lomonaco and Maltoni, CoRL 2017 (arXiv 1705.03550).
    """
    require_choice("check", check, CHECKS)
    base = Path(root).expanduser()
    names: list[str] = []
    labels: list[int] = []
    ends, missing = [], []
    for session in _SESSIONS:
        for number in _OBJECTS:
            found = _frames(base, session, number)
            if not found:
                missing.append(f"s{session}/o{number}")
            names += found
            labels += [(number - 1) // 5] * len(found)
        ends.append(len(names))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} folders of {_FACTS.name} are missing or without images in "
            f"{base}, for example {missing[:3]}. {_FACTS.expected}"
        )
    whole = ClassImages.of_files(base, names, labels)
    parts = np.split(np.arange(len(names)), ends[:-1])
    sessions = {k: whole.subset(part) for k, part in zip(_SESSIONS, parts, strict=True)}
    test = np.concatenate([parts[k - 1] for k in CORE50_TEST_SESSIONS])
    check_counts(_FACTS, len(CORE50_NAMES), range(len(names) - len(test)), test, check)
    return Core50(sessions, CORE50_NAMES)


def _frames(base: Path, session: int, number: int) -> list[str]:
    """Pictures of one object in one session, sorted."""
    folder = f"s{session}/o{number}"
    if not (base / folder).is_dir():
        return []
    found = sorted(n for n in os.listdir(base / folder) if n.endswith(".png"))
    for name in found:
        match = _NAME.fullmatch(name)
        if match is None or (int(match[1]), int(match[2])) != (session, number):
            raise ValueError(
                f"{base / folder / name} must be named C_{session:02}_{number:02}_ and "
                f"three digits. {_FACTS.expected}"
            )
    return [f"{folder}/{name}" for name in found]
