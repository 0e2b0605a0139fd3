"""TiC-DataComp: seven years of image-text pairs from the web, from released shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.classic.tic_steps import (
    TicPart,
    gallery,
    tic_scenario,
    time_bounds,
)
from avalanche_clip.benchmarks.datasets.web.tic_lists import all_uids
from avalanche_clip.benchmarks.datasets.web.tic_shards import TicShards
from avalanche_clip.benchmarks.datasets.web.uids import UIDArray, ordered_uids
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.streams.classes import LabelledImages
from avalanche_clip.common.checks import (
    existing_folder,
    require_indices,
    require_known,
    require_some,
)
from avalanche_clip.common.files import read_lines, require_file

TIC_DATACOMP_STEPS: dict[str, tuple[str, ...]] = {
    "2016": ("2014", "2015", "2016"),
    **{str(year): (str(year),) for year in range(2017, 2023)},
}
"""Time steps, named by the last year that is pooled in them."""


def tic_datacomp(
    train: str | Path,
    evaluation: str | Path | None = None,
    *,
    evaluation_uids: Any = (),
    steps: Mapping[str, Sequence[str]] = TIC_DATACOMP_STEPS,
    keep: Any = None,
    weights: Mapping[str, int] | None = None,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-DataComp from its shards.

    Streams: ``train``, one experience per time step; ``test``, retrieval, one per
    evaluation set, of which a step may have several; ``classification`` where the
    evaluation folder holds it. Experiences carry ``time_label``, ``time_start``,
    ``time_end``, ``step`` (place in ``train``; ``fold_columns`` averages the sets of a
    step) and ``counts``, evaluation sets ``uids`` too.

    Pairs of evaluation sets are taken out of every training set here: those in the
    evaluation folder and those of ``evaluation_uids``. The released lists without
    evaluation pairs still hold most of them.

    :param train: holds a folder of shards per source, see :class:`TicShards`.
    :param evaluation: holds ``retrieval/{source}``, and perhaps
        ``datacompnet/{source}`` with ``classnames.txt`` and
        ``zeroshot_classification_templates.txt`` in it or beside it.
    :param evaluation_uids: lists of evaluation pairs, see :func:`all_uids`: give the
        released ones, since a smaller pool has a part of the evaluation sets only.
    :param steps: name of a step -> sources that it pools, in order of time. A source is
        a year; a month's step names the folder of its year, and has a list in ``keep``.
    :param keep: list of ids that may be used, such as those of a filter, or one per
        step: in ascending order, or the path of one. A month's list also restricts
        the evaluation set of its year, where it has none of its own.
    :param weights: source -> how often each of its pairs is there.
    :param gallery_size: retrieval pairs per evaluation set, chosen by a hash of their
        ids; default all. Scores of galleries of different sizes do not compare.
    :param seed: of that choice.
    :param on_error: see :class:`TicShards`.
    :param index: folder for the indexes of the shards, where those of the shards cannot
        be written to.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if a folder is missing.
    :raises ValueError: if neither evaluation sets nor their ids are given, a step has
        no pair left, or a gallery is larger than its set.

    Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
    """
    require_some(steps, "steps")
    sources = {str(s): tuple(own) for s, own in steps.items()}
    for label, own in sources.items():
        require_some(own, f"sources of step {label}")
        time_bounds(_since(label, own)), time_bounds(label)
    names = {name for own in sources.values() for name in own}
    require_known(weights or (), names, "weights of the sources")
    lists = _keep_lists(keep, sources)
    root = existing_folder(train, "give the folder of the training shards")

    def shards(folder: Path, **options: Any) -> TicShards:
        parts = folder.absolute().parts[1:]
        own = None if index is None else Path(index, *parts)
        return TicShards(folder, on_error=on_error, index=own, **options)

    def sets(folder: Path) -> Iterator[tuple[TicPart, TicShards, Path]]:
        for number, (label, own) in enumerate(sources.items()):
            month = len(label) == 6
            whole = label not in own and (folder / label).is_dir()
            for name in (label,) if whole else own:
                pairs = shards(
                    folder / name, keep=lists[label] if month and not whole else None
                )
                shown = label if month else name
                start, facts = (
                    _since(label, own) if whole else shown,
                    {"counts": pairs.counts},
                )
                part = TicPart(shown, start, number, [pairs], facts=facts)
                yield part, pairs, folder / name

    streams: dict[str, list[TicPart]] = {"train": []}
    banned, known = [evaluation_uids], {}
    if evaluation is not None:
        place = existing_folder(evaluation, "give the folder of the evaluation sets")
        streams["test"] = []
        for part, pairs, _ in sets(place / "retrieval"):
            uids = pairs.uids()
            banned.append(uids)
            pairs.choose(gallery(uids["f0"], gallery_size, seed, part.label))
            part.facts["uids"] = pairs.uids()
            streams["test"].append(part)
        if (place / "datacompnet").is_dir():
            streams["classification"] = []
            for part, pairs, folder in sets(place / "datacompnet"):
                if "class_prompts" not in known:
                    known["class_prompts"] = _prompts(folder)
                banned.append(pairs.uids())
                part.targets = pairs.classes()
                texts = known["class_prompts"].prompts()
                require_indices(part.targets, len(texts), f"classes of {part.label}")
                part.pairs = [LabelledImages(pairs, part.targets, texts)]
                streams["classification"].append(part)
    without = all_uids(banned)
    if not len(without):
        raise ValueError(
            "Nothing says which pairs belong to evaluation sets; give evaluation= "
            "(their folder) or evaluation_uids= (their lists)."
        )
    for number, (label, own) in enumerate(sources.items()):
        options: dict[str, Any] = {"keep": lists[label], "without": without}
        found = [
            shards(root / name, weight=(weights or {}).get(name, 1), **options)
            for name in own
        ]
        counts = {name: p.counts for name, p in zip(own, found, strict=True)}
        part = TicPart(
            label, _since(label, own), number, found, facts={"counts": counts}
        )
        streams["train"].append(part)
    return tic_scenario(streams, gallery_size=gallery_size, **known)


def _since(label: str, sources: Sequence[str]) -> str:
    return label if len(label) == 6 else sources[0]


def _keep_lists(
    keep: Any, steps: Mapping[str, Sequence[str]]
) -> dict[str, UIDArray | None]:
    if keep is None:
        return dict.fromkeys(steps)
    if not isinstance(keep, Mapping):
        return dict.fromkeys(steps, ordered_uids(keep))
    require_known(keep, steps, "steps with a list")
    missing = [label for label in steps if label not in keep]
    if missing:
        raise ValueError(f"keep has no list of the steps {missing}; give one per step.")
    return {label: ordered_uids(own) for label, own in keep.items()}


def _prompts(folder: Path) -> ClassPrompts:
    """Read the class names and templates of an evaluation set."""
    found = []
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        near, above = folder / name, folder.parent / name
        path = require_file(near if near.is_file() else above, "put it there")
        found.append([line for _, line in read_lines(path) if line.strip()])
    return ClassPrompts(found[0], [t.replace("{c}", "{}") for t in found[1]])
