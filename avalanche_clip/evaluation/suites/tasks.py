"""Zero-shot tasks: pictures with classes, captions or associations, from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_STEPS,
    EmojiImages,
    load_emoji_table,
)
from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons
from avalanche_clip.benchmarks.datasets.web.folder import WebFolder
from avalanche_clip.benchmarks.items.class_labels import class_targets
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.flat import raw_item, raw_text
from avalanche_clip.benchmarks.items.given import check_source
from avalanche_clip.benchmarks.items.marks import digest_of, picture_digest
from avalanche_clip.common.checks import (
    as_texts,
    require_choice,
    require_indices,
    require_known,
    require_length,
    require_some,
)
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.common.randomness import kept_rng, seed_cpu
from avalanche_clip.models.text.prompts import DEFAULT_TEMPLATE, fill

_CLASSES = "classification"
METRICS = {
    _CLASSES: (
        *("acc1", "acc5", "mean_per_class_recall", "macro_f1"),
        *("worst_group_acc1", "worst_group_acc5"),
    ),
    "multilabel": ("mean_average_precision",),
    "retrieval": ("mean_R@1",),
    "association": ("jaccard",),
}
"""Kind of task -> what its main metric can be."""

Template = str | Callable[[str], str]
Templates = Template | Sequence[Template] | Mapping[str, Sequence[str]]
_SAMPLED = 16


@dataclass(frozen=True, eq=False)
class ZeroShotTask:
    """Pictures and what is asked about them; made by one of its class methods.

    :param name: of the task.
    :param kind: a key of :data:`METRICS`.
    :param pool: pictures, read one by one; tasks with the same pool (the same object)
        share its features.
    :param rows: positions in the pool, int64 ``(N,)``.
    :param metric: the main one.
    :param labels: class of each picture, int64 ``(N,)``; zeros and ones ``(N, C)`` of
        multi-label data; for associations whether each belongs to its cue, ``(N,)``.
    :param prompts: of each class; for associations the cues.
    :param texts: captions of each picture.
    :param groups: of each picture, int64 ``(N,)``: its group for worst groups, -1 for
        none, or the number of its cue.
    """

    name: str
    kind: str
    pool: Any
    rows: npt.NDArray[np.int64]
    metric: str
    labels: npt.NDArray[np.int64] | None = None
    prompts: tuple[tuple[str, ...], ...] = ()
    texts: tuple[tuple[str, ...], ...] = ()
    groups: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        few = self.kind == _CLASSES and len(self.prompts) < 5
        allowed = [m for m in METRICS[self.kind] if not (few and m.endswith("acc5"))]
        if self.groups is None:
            allowed = [m for m in allowed if not m.startswith("worst")]
        else:
            require_some(np.flatnonzero(self.groups >= 0), "pictures in groups")
        require_choice(f"metric of the task {self.name!r}", self.metric, allowed)
        require_some(self.rows, f"pictures in the task {self.name!r}")

    # ------------------------------------------------------------------- making
    @classmethod
    def classification(
        cls,
        name: str,
        data: Any,
        class_names: Sequence[str] | ClassPrompts | None = None,
        templates: Template
        | Sequence[Template]
        | Mapping[str, Sequence[str]]
        | None = (None),
        *,
        metric: str = "acc1",
        groups: Sequence[int] | npt.NDArray | None = None,
    ) -> ZeroShotTask:
        """Make a task of pictures with one class each.

        :param name: of the task.
        :param data: map-style data set of ``(picture, class index)``, such as those of
            torchvision without a transform.
        :param class_names: in the order of the indices; default ``data.classes``. Or
            :class:`ClassPrompts`, which hold their templates; then indices are
            positions in it.
        :param templates: one or several, with ``{}`` or ``{c}`` where the name goes, or
            functions of the name; or a mapping from each name to its prompts. Default
            ``"a photo of a {}."``.
        :param metric: the main one: ``"acc1"``, ``"acc5"``,
            ``"mean_per_class_recall"``, ``"macro_f1"``, and with groups
            ``"worst_group_acc1"`` and ``"worst_group_acc5"``.
        :param groups: of each picture, -1 for none.
        :raises ValueError: if labels, names, templates or groups do not fit.
        """
        labels = class_targets(data)
        if class_names is None:
            class_names = getattr(data, "classes", None)
            if class_names is None:
                raise ValueError(
                    f"The {type(data).__name__} of {name!r} has no 'classes'; give "
                    "class_names, in the order of the labels."
                )
        prompts = class_prompts(class_names, templates)
        require_indices(labels, len(prompts), f"labels of {name!r}")
        if groups is not None:
            groups = as_integer_array(groups, f"groups of {name!r}", f"{len(labels)}")
        pool, rows = Pictures(data), np.arange(len(labels))
        return cls(name, _CLASSES, pool, rows, metric, labels, prompts, groups=groups)

    @classmethod
    def retrieval(cls, name: str, data: Any) -> ZeroShotTask:
        """Make a task of pictures with one or several captions each.

        Equal captions count as one that belongs to several pictures.

        :param name: of the task.
        :param data: map-style data set of ``(picture, caption or captions)``; a method
            ``text(index)`` saves it from reading pictures.
        :raises TypeError: if a caption is no string.
        :raises ValueError: if a picture has none.
        """
        check_source(data)
        texts = tuple(map(tuple, _captions(data, name)))
        rows = np.arange(len(texts))
        return cls(name, "retrieval", Pictures(data), rows, "mean_R@1", texts=texts)

    @classmethod
    def association(cls, name: str, data: Any) -> ZeroShotTask:
        """Make a task of cues, each with candidates of which some belong to it.

        As many candidates as belong to the cue are chosen by the model; the value is
        the Jaccard index of chosen and right ones, averaged over cues (WinoGAViL,
        arXiv 2207.12576, asks for that with ``"A <cue>"`` or ``"An <cue>"``).

        :param name: of the task.
        :param data: map-style data set of ``(pictures, cue, which belong to it)``.
        :raises ValueError: if lengths differ, or none belong to a cue.
        """
        check_source(data)
        places: list[tuple[int, int]] = []
        cues, labels = [], []
        for number in range(len(data)):
            shown, cue, right = data[number]
            right = np.asarray(right, dtype=bool)
            require_length(right, len(shown), f"marks of cue {number}", "picture")
            require_some(np.flatnonzero(right), f"right pictures of cue {number}")
            places += [(number, place) for place in range(len(shown))]
            cues += as_texts([cue], f"cue {number}")
            labels.append(right)
        right = np.concatenate(labels).astype(np.int64)
        groups = np.array([number for number, _ in places])
        prompts = tuple((cue,) for cue in cues)
        pool, rows = Pictures(data, places), np.arange(len(places))
        return cls(
            name, "association", pool, rows, "jaccard", right, prompts, groups=groups
        )

    @classmethod
    def web(
        cls,
        folder: str | Path,
        name: str | None = None,
        *,
        split: str = "test",
        captions: str | None = None,
        metric: str | None = None,
        group_field: int | None = None,
        ignored_groups: Sequence[int] = (),
    ) -> ZeroShotTask:
        """Make a task of a folder of tar shards, see :class:`WebFolder`.

        :param folder: as CLIP_benchmark writes it.
        :param name: of the task; default that of the folder.
        :param split: folder of the shards.
        :param captions: of retrieval sets, ``"lines"`` or ``"whole"``.
        :param metric: the main one; default the first of its kind.
        :param group_field: column of the samples' ``npy`` that holds the group.
        :param ignored_groups: which do not count.
        :raises FileNotFoundError: naming the file, if one is missing.
        :raises ValueError: if a file has another form.
        """
        found = WebFolder(folder, split, captions=captions)
        groups = None
        if group_field is not None or ignored_groups:
            if found.facts is None or group_field is None:
                raise ValueError(
                    f"{folder}: groups need a group_field, and samples with an npy."
                )
            require_indices(np.array(group_field), found.facts.shape[1], "group_field")
            groups = found.facts[:, group_field].astype(np.int64)
            groups = np.where(np.isin(groups, ignored_groups), -1, groups)
        names = found.class_names
        prompts = class_prompts(names, found.templates) if names else ()
        return cls(
            name or Path(folder).name, found.kind, found, np.arange(len(found)),
            metric or METRICS[found.kind][0], found.labels, prompts,
            tuple(map(tuple, found.texts)), groups,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Settings and hashes of data and prompts, as plain data.

        All labels, captions and prompts are hashed, :data:`_SAMPLED` pictures, and of
        tar shards the sizes of all.
        """
        facts = [self.rows, self.labels, self.groups]
        pieces = [b"" if fact is None else fact.tobytes() for fact in facts]
        pieces.append(json.dumps(self.texts).encode())
        if isinstance(self.pool, WebFolder):
            pieces.append(self.pool.places.tobytes())
        places = np.linspace(0, len(self.rows) - 1, _SAMPLED).round().astype(int)
        with kept_rng():
            seed_cpu(0)
            for row in self.rows[np.unique(places)].tolist():
                pieces.append(picture_digest(self.pool[row]) or b"unknown")
        return {
            "kind": self.kind,
            "metric": self.metric,
            "pictures": len(self.rows),
            "data": digest_of(pieces).hex()[:32],
            "prompts": digest_of([json.dumps(self.prompts).encode()]).hex()[:32],
        }


class Pictures:
    """The pictures of a data set of pairs, or of all places in one of cues."""

    def __init__(self, data: Any, places: Sequence[tuple[int, int]] = ()) -> None:
        self.data, self.places = data, places

    def __len__(self) -> int:
        return len(self.places or self.data)

    def __getitem__(self, index: int) -> Any:
        if self.places:
            cue, place = self.places[index]
            return self.data[cue][0][place]
        avalanche = isinstance(self.data, AvalancheDataset)
        return (raw_item(self.data, index) if avalanche else self.data[index])[0]


def _captions(data: Any, name: str) -> Iterator[list[str]]:
    for index in range(len(data)):
        if isinstance(data, AvalancheDataset):
            text = raw_text(data, index)
        else:
            read = getattr(data, "text", None)
            text = read(index) if callable(read) else data[index][1]
        given = [text] if isinstance(text, str) else text
        yield as_texts(given, f"captions of picture {index} of {name!r}")


def class_prompts(
    names: Sequence[str] | ClassPrompts, templates: Any
) -> tuple[tuple[str, ...], ...]:
    """Write the prompts of each class, see :meth:`ZeroShotTask.classification`."""
    if isinstance(names, ClassPrompts):
        if templates is not None:
            raise ValueError("ClassPrompts hold their templates; leave templates out.")
        return tuple(map(tuple, names.prompts(which="all")))
    found = as_texts(names, "class_names", least=0)
    if isinstance(templates, Mapping):
        require_known(templates, found, "names in templates")
        require_known(found, templates, "class_names")
        return tuple(tuple(as_texts(templates[n], f"prompts of {n!r}")) for n in found)
    templates = DEFAULT_TEMPLATE if templates is None else templates
    one = isinstance(templates, str) or callable(templates)
    makers = [_maker(t, found) for t in ([templates] if one else templates)]
    require_some(makers, "templates")
    return tuple(tuple(as_texts((m(n) for m in makers), "prompts")) for n in found)


def _maker(template: Any, names: list[str]) -> Callable[[str], str]:
    if callable(template):
        return template
    plain = template.replace("{c}", "{}") if isinstance(template, str) else template
    ClassPrompts(names, plain)  # checks both
    return partial(fill, plain)


# --------------------------------------------------------------- embedded drawings
@cache
def embedded_tasks() -> dict[str, Callable[[], ZeroShotTask]]:
    """Name -> maker of the tasks on the drawings that ship with the package.

    Each drawing is a class of its own, and its prompt its name. ``emoji-2010``,
    ``emoji-2014``, ... are the emoji of a time step, ``emoji-later`` those of all but
    the first, ``emoji-<group>`` those of a group of ``emoji-later``, all drawn in a
    style that no weights here were trained on; ``held-out-icons`` are icons of names
    that none was trained on.
    """
    table, icons = load_emoji_table(), HeldOutIcons()
    pools = {True: EmojiImages("twemoji"), False: Pictures(icons)}
    later = table.step > 0
    chosen = {
        **{f"emoji-{s.label}": table.step == k for k, s in enumerate(EMOJI_STEPS)},
        "emoji-later": later,
        **{
            f"emoji-{n}": (table.group == k) & later for k, n in enumerate(table.groups)
        },
        "held-out-icons": np.ones(len(icons), dtype=bool),
    }

    def make(name: str) -> ZeroShotTask:
        emoji, rows = name != "held-out-icons", np.flatnonzero(chosen[name])
        names, labels = table.names if emoji else icons.names, np.arange(len(rows))
        prompts = tuple((names[row],) for row in rows)
        return ZeroShotTask(name, _CLASSES, pools[emoji], rows, "acc1", labels, prompts)

    return {name: partial(make, name) for name in chosen}
