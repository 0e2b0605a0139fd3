"""TiC-YFCC and TiC-RedCaps: four time steps of photos and of posts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from PIL import Image

from avalanche_clip.benchmarks.classic.tic_steps import TicPart, gallery, tic_scenario
from avalanche_clip.benchmarks.datasets.captioned import load_image
from avalanche_clip.benchmarks.datasets.web.pairs import TarPairs
from avalanche_clip.benchmarks.datasets.web.tar_index import find_tars, open_tar_index
from avalanche_clip.benchmarks.datasets.web.tic_tables import (
    REDCAPS_BATCHES,
    YFCC_BATCHES,
    read_pair_table,
)
from avalanche_clip.benchmarks.items.skipped import skipped_for
from avalanche_clip.common.checks import existing_folder
from avalanche_clip.common.files import unreadable

_YFCC = [("2008", "2004"), ("2010", "2009"), ("2012", "2011"), ("2014", "2013")]
_REDCAPS = [("2017", None), ("2018", "2018"), ("2019", "2019"), ("2020", "2020")]


def tic_yfcc(
    root: str | Path,
    images: str | Path | None = None,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-YFCC: photos by the year of their upload, in four time steps.

    The steps ``"2008"``, ``"2010"``, ``"2012"`` and ``"2014"`` are named by their last
    years. Streams ``train`` and ``test`` have one experience each per step, with
    ``time_label``, ``time_start``, ``time_end``, ``step``, ``counts`` and, in ``test``,
    the ``names`` of its pairs. Photos of a test set are in no training set, of whatever
    step: those that are in both are left out and counted.

    :param root: with ``{train|test}_batch_{0..3}.csv``, see :func:`build_tic_yfcc`; and
        shards ``{train|test}_batch_{b}__*.tar`` of pictures and JSON texts, where no
        ``images`` are given. Shards alone will do; then the tables that they were made
        of say which photos are tested.
    :param images: folder that the paths of the tables begin in.
    :param gallery_size: pairs per test set, chosen by a hash of their paths; default
        all. Scores of galleries of different sizes do not compare.
    :param seed: of that choice.
    :param on_error: ``"raise"``, or ``"skip"`` samples that cannot be read, see
        :class:`TarPairs`.
    :param index: folder for the indexes of the shards; default ``tar_index`` beside
        them.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises FileNotFoundError: if a table or the shards of a batch are missing.
    :raises ValueError: if one is damaged, or a gallery is larger than its test set.

    Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
    """
    batches: Any = dict(zip(YFCC_BATCHES, _YFCC, strict=True))
    return _tables(batches, root, images, gallery_size, seed, on_error, index)


def tic_redcaps(
    root: str | Path,
    images: str | Path | None = None,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    index: str | Path | None = None,
) -> CLScenario:
    """Build TiC-RedCaps: posts up to 2017, of 2018, of 2019 and of 2020.

    :param root: with ``{train|test}_batch_{2017..2020}.csv``, see
        :func:`build_tic_redcaps`, or shards.
    :param images: see :func:`tic_yfcc`, like all that follows.
    :param gallery_size: pairs per test set.
    :param seed: of their choice.
    :param on_error: ``"raise"`` or ``"skip"``.
    :param index: folder for the indexes of the shards.
    """
    batches = dict(zip(REDCAPS_BATCHES, _REDCAPS, strict=True))
    return _tables(batches, root, images, gallery_size, seed, on_error, index)


class _TablePairs:
    """Rows of a table; those that cannot be read may be left out of their batch."""

    def __init__(self, names: Any, captions: Any, images: Any, on_error: str) -> None:
        self.names, self.captions, self.images = names, captions, images
        self.rows = np.arange(len(names))
        self.skipped = skipped_for(on_error)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Image.Image, str]:
        text = self.text(item)
        return load_image(self.images, self.names[self.rows[item]]), text

    def text(self, item: int) -> str:
        """Return a caption without its picture."""
        return self.captions[self.rows[item]]


def _tables(
    batches: Mapping[int, tuple[str, str | None]],
    root: str | Path,
    images: str | Path | None,
    gallery_size: int | None,
    seed: int,
    on_error: str,
    index: str | Path | None,
) -> CLScenario:
    root = existing_folder(root, "give the folder of the tables or shards")
    if images is not None:
        existing_folder(images, "give the folder of the pictures")
    streams: dict[str, list[TicPart]] = {"train": [], "test": []}
    tested: set[str] = set()
    for stream in ("test", "train"):
        for number, (batch, (label, since)) in enumerate(batches.items()):
            stem = f"{stream}_batch_{batch}"
            pairs, names = _source(root, stem, images, on_error, index)
            if stream == "test":
                tested.update(names)
                items = gallery(_hashes(names), gallery_size, seed, stem)
                facts: dict[str, Any] = {"names": [names[item] for item in items]}
            else:
                items = np.flatnonzero([name not in tested for name in names])
                facts = {}
            lost = 0 if stream == "test" else len(pairs) - len(items)
            facts["counts"] = {"found": len(pairs), "in test sets": lost}
            pairs.rows = pairs.rows[items]
            streams[stream].append(TicPart(label, since, number, [pairs], facts=facts))
    return tic_scenario(streams, gallery_size=gallery_size)


def _source(
    root: Path,
    stem: str,
    images: str | Path | None,
    on_error: str,
    index: str | Path | None,
) -> tuple[Any, Any]:
    """Return the pairs of a table or of its shards, and the names of all of them."""
    path, table = root / f"{stem}.csv", None
    if images is not None or path.is_file():
        table = read_pair_table(path)
        if images is not None:
            return _TablePairs(*table, images, on_error), table[0]
    tars = [tar for tar in find_tars(root) if tar.name.startswith(f"{stem}__")]
    if not tars:
        raise FileNotFoundError(
            f"{root} has no shards {stem}__*.tar; give images= for its tables."
        )
    where = Path(root / "tar_index" if index is None else index, stem)
    found = open_tar_index(tars, where, on_error=on_error)
    pairs = TarPairs(found, "json:caption", on_error=on_error)
    keys = [found.names[row].rpartition("/")[2] for row in pairs.rows]
    if table is None:  # then the split is that of the shards
        return pairs, [f"{stem}/{key}" for key in keys]
    wrong = [k for k in keys if not k.isdecimal() or int(k) >= len(table[0])]
    if wrong:
        words = (
            f"the sample {wrong[0]!r} of its shards is no row of its {len(table[0])}"
        )
        raise unreadable(path, "the table of these shards", words)
    return pairs, [table[0][int(key)] for key in keys]


def _hashes(names: Any) -> np.ndarray:
    parts = (hashlib.blake2b(str(n).encode(), digest_size=8).digest() for n in names)
    return np.frombuffer(b"".join(parts), dtype="<u8")
