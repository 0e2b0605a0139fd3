"""Read MIRB: questions that need several images at once.

Layout, as released on the model hub (``VLLMs/MIRB``) with ``images.zip`` unpacked::

    <root>/count.json                   one list of questions per subset
    <root>/images/<subset>/<file>

The names of the first upload (``domain``, ``foods``, ``image_needles``, ``places``,
``plot``) are read as well. The whole set is test data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from avalanche_clip.common.checks import (
    require_distinct,
    require_known,
    require_some,
    require_type,
)
from avalanche_clip.common.files import inside, read_json, unreadable
from avalanche_clip.common.pictures import picture_to_rgb, read_picture

_WORD = "Answer with a single word."
_OPTION = "Answer with the option symbol."
_NUMBER = "Answer with a single number."
_SCENE = "The following images are different views of the same 3D scene. "


class MIRBSubset(NamedTuple):
    """What a subset asks for.

    :ivar dimension: one of four.
    :ivar older: its name in the first upload.
    :ivar kind: ``"letter"``, ``"number"``, ``"yesno"``, ``"contains"`` (a name, or
        yes or no) or ``"title"`` (a text that is compared as a whole).
    :ivar instruction: sentence before the images.
    """

    dimension: str
    older: str
    kind: str
    instruction: str


MIRB_SUBSETS = {
    "codeu": MIRBSubset("Reasoning", "codeu", "letter", _OPTION),
    "plot_code": MIRBSubset("Reasoning", "plot", "title", _WORD),
    "analogy": MIRBSubset("Reasoning", "analogy", "yesno", _WORD),
    "3d_scene": MIRBSubset("Reasoning", "3d_scene", "number", _SCENE + _NUMBER),
    "food": MIRBSubset("Knowledge", "foods", "letter", _OPTION),
    "sightseeing": MIRBSubset("Knowledge", "places", "contains", _WORD),
    "image_jigsaw": MIRBSubset("Perception", "image_jigsaw", "letter", _OPTION),
    "count": MIRBSubset("Perception", "count", "number", _NUMBER),
    "attribute": MIRBSubset("Perception", "domain", "yesno", _WORD),
    "visual_chain": MIRBSubset("Multi-hop", "image_needles", "number", _WORD),
    "arxiv": MIRBSubset("Multi-hop", "arxiv", "title", "Answer with the paper title."),
}
"""The subsets that the averages are made of."""

MIRB_CONTROLS = {
    **{f"{name}_concat": name for name in ("3d_scene", "count", "visual_chain")},
    **{"codeu_text": "codeu", "plot_text": "plot_code", "arxiv_text": "arxiv"},
}
"""Control variants -> their subsets; they are part of no average."""

MIRB_DIMENSIONS: dict[str, list[str]] = {}
"""Dimension -> its subsets."""
for _name, _subset in MIRB_SUBSETS.items():
    MIRB_DIMENSIONS.setdefault(_subset.dimension, []).append(_name)

MIRB_RULES = {
    "letter": "exact",
    "number": "number",
    "yesno": "yes-no",
    "contains": "contains",
    "title": "exact",
}
"""Kind of an answer -> rule of :func:`short_answer_score`."""

_OLDER = {subset.older: name for name, subset in MIRB_SUBSETS.items()}
_OLDER["image_needles_concat"] = "visual_chain_concat"
_FIELDS = ("questions", "answers", "images")


def mirb_subset(name: str) -> str:
    """Return the name of today of a subset or control variant.

    :raises ValueError: for a name that MIRB does not have.

    >>> mirb_subset("places"), mirb_subset("count_concat")
    ('sightseeing', 'count_concat')
    """
    require_known([name], [*MIRB_SUBSETS, *MIRB_CONTROLS, *_OLDER], "MIRB's subsets")
    return _OLDER.get(name, name)


@dataclass(frozen=True)
class MultiImageSample:
    """One question over several images.

    :param images: paths or pictures, in their order; possibly none.
    :param question: one text, options included.
    :param answer: the gold, a text or an integer.
    :param subset: of MIRB, old or new name; control variants too.
    :param id: unique within a data set; default ``<subset>/0``.
    :param extra: further fields of the file.
    """

    images: Sequence[str | Path | Image.Image]
    question: str
    answer: str
    subset: str
    id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    #: one of four, None for control variants
    dimension: str | None = field(init=False)
    #: kind of the answer, see :class:`MIRBSubset`
    kind: str = field(init=False)
    #: sentence before the images
    instruction: str = field(init=False)

    def __post_init__(self) -> None:
        subset = mirb_subset(self.subset)
        name = self.id or f"{subset}/0"
        require_type(self.answer, (str, int), f"The answer of {name}", "a text")
        facts = MIRB_SUBSETS[MIRB_CONTROLS.get(subset, subset)]
        changed = {"subset": subset, "id": name, "answer": str(self.answer)}
        changed |= {"kind": facts.kind, "instruction": facts.instruction}
        dimension = None if subset in MIRB_CONTROLS else facts.dimension
        for key, value in {**changed, "dimension": dimension}.items():
            object.__setattr__(self, key, value)
        if self.kind == "yesno" and not self.yes_no:
            raise ValueError(
                f"The answer of {name} is {self.answer!r}; give 'yes' or 'no'."
            )

    @property
    def yes_no(self) -> bool:
        """Whether the gold is yes or no."""
        return self.answer.strip().lower() in ("yes", "no")

    def picture(self, place: int) -> Image.Image:
        """Return one of the images, RGB in its own size."""
        image = self.images[place]
        if isinstance(image, (str, Path)):
            return read_picture(image)
        return picture_to_rgb(image)


MIRBSource = str | Path | Iterable[MultiImageSample]


class MIRBDataset(Sequence[MultiImageSample]):
    """The questions of some subsets.

    :param source: folder with the JSON files, or samples.
    :param subsets: names, old or new, control variants too; None for the eleven, or
        for all samples.
    :raises FileNotFoundError: if the folder, all files, or an image is missing.
    :raises ValueError: naming the file: if it is damaged, or lies there under its old
        and its new name; if there are no samples, or ids occur twice.

    :ivar missing: subset -> the file that is wanted.
    """

    def __init__(
        self, source: MIRBSource, subsets: Iterable[str] | None = None
    ) -> None:
        names = None if subsets is None else list(map(mirb_subset, subsets))
        self.missing: dict[str, str] = dict(getattr(source, "missing", {}))
        if isinstance(source, (str, Path)):
            source = self._read(Path(source), names or list(MIRB_SUBSETS))
        kept = (s for s in source if names is None or s.subset in names)
        self._samples = tuple(kept)
        require_some(self._samples, "questions")
        for sample in self._samples:
            require_type(sample, MultiImageSample, "A sample", "MultiImageSample")
        require_distinct((sample.id for sample in self._samples), "ids of samples")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: Any) -> Any:
        return self._samples[place]

    def subsets(self) -> dict[str, list[MultiImageSample]]:
        """Subset -> its questions, in the order of MIRB's table."""
        names = [*MIRB_SUBSETS, *MIRB_CONTROLS]
        found = {n: [s for s in self._samples if s.subset == n] for n in names}
        return {name: samples for name, samples in found.items() if samples}

    @cached_property
    def checksum(self) -> str:
        """Hash of questions, golds, extra fields and pictures, whatever their order."""
        rows = [
            [s.id, s.question, s.answer, s.extra, list(map(_hash, s.images))]
            for s in sorted(self._samples, key=lambda sample: sample.id)
        ]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def _read(self, root: Path, names: list[str]) -> list[MultiImageSample]:
        samples = [sample for name in names for sample in self._subset(root, name)]
        if len(self.missing) == len(names):
            raise FileNotFoundError(
                f"{root} holds none of the files asked for, such as "
                f"{self.missing[names[0]]}; give the folder with MIRB's JSON files."
            )
        paths = dict.fromkeys(path for s in samples for path in s.images)
        absent = [path for path in paths if not Path(path).is_file()]  # type: ignore
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} of {len(paths)} images are missing, such as "
                f"{absent[0]}; unpack images.zip in {root}."
            )
        return samples

    def _subset(self, root: Path, name: str) -> Iterator[MultiImageSample]:
        older = [old for old, new in _OLDER.items() if new == name != old]
        files = [root / f"{spelling}.json" for spelling in (name, *older)]
        there = [file for file in files if file.exists()]
        if len(there) > 1:
            raise ValueError(
                f"{root} holds {there[0].name} and {there[1].name}, two names of one "
                "subset; keep one of them."
            )
        if not there:
            self.missing[name] = " or ".join(map(str, files))
        for file in there:
            for number, row in enumerate(read_json(file, list)):
                try:
                    yield _sample(row, name, f"{name}/{number}", file)
                except (TypeError, ValueError) as error:
                    wanted, cause = "a list of MIRB's questions", f"{number}: {error}"
                    raise unreadable(file, wanted, f"entry {cause}") from error


def _sample(row: Any, subset: str, name: str, file: Path) -> MultiImageSample:
    require_type(row, dict, "The entry", "a mapping")
    absent = [key for key in _FIELDS if key not in row]
    if absent:
        raise ValueError(f"it has no {' and no '.join(map(repr, absent))}")
    question, answer, images = (row[key] for key in _FIELDS)
    require_type(question, str, "'questions'", "one text")
    require_type(images, (list, str), "'images'", "a list of file names")
    listed = [images] if isinstance(images, str) else images
    paths = [inside(file.parent, image, file) for image in listed]
    extra = {key: value for key, value in row.items() if key not in _FIELDS}
    return MultiImageSample(paths, question, answer, subset, name, extra)


def _hash(image: str | Path | Image.Image) -> str:
    if isinstance(image, (str, Path)):
        return hashlib.sha256(Path(image).read_bytes()).hexdigest()
    pixels = np.asarray(picture_to_rgb(image))
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
