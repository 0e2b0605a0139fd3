"""MSCOCO36 and Crossmodal-3600: the benchmark of CLL-CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.datasets.coco36 import Coco36
from avalanche_clip.benchmarks.datasets.emoji import EMOJI_LANGUAGES, check_languages
from avalanche_clip.benchmarks.datasets.xm3600 import XM3600
from avalanche_clip.benchmarks.items.facts import with_facts
from avalanche_clip.benchmarks.items.items import make_image_text_dataset
from avalanche_clip.benchmarks.streams.languages import multilingual_benchmark

_STREAMS = ("train", "test", "valid", "xm3600")
_ROWS = 10**7
"""More than any stream has rows; a sample id is (stream, language, row)."""


def multilingual_coco36(
    root: str | Path,
    image_root: str | Path | None = None,
    *,
    languages: Sequence[str] = EMOJI_LANGUAGES,
    validation: bool = False,
    xm3600: str | Path | None = None,
    xm3600_images: str | Path | None = None,
) -> CLScenario:
    """Build the stream of COCO captions in 36 languages, one after the other.

    Streams: ``train`` (566,747 translated captions per language, one per item),
    ``test`` and, if asked for, ``valid`` (5,000 pictures each with about five
    captions) and ``xm3600`` (3,600 pictures with captions by people, a zero-shot
    test). Only the English captions and the names of pictures are read at once;
    a language's captions are when it is trained on.

    In ``train``, ``image_id`` is the number of the picture by first appearance and
    ``text_id`` the row of the English caption, which are also the rows of the
    released features; ``targets`` is ``image_id``. In the other streams both are
    the released id of the picture. The scenario has ``teacher_source`` (the
    training data, whose source knows the English captions) and
    ``teacher_captions`` (English captions by ``text_id``).

    :param root: see :class:`Coco36`.
    :param image_root: folder of COCO's pictures; None if features are stored and
        pictures never read.
    :param languages: codes in the order of learning; default the task order of
        CLL-CLIP. Integer codes are positions in ``EMOJI_LANGUAGES``, as in
        :func:`multilingual_emoji`.
    :param validation: whether to add the stream ``valid``.
    :param xm3600: see :class:`XM3600`; None for no such stream.
    :param xm3600_images: folder of its pictures.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: for unknown or repeated languages, or files whose rows do
        not belong together.
    :raises FileNotFoundError: naming a missing file.

    Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186).
    """
    codes = check_languages(languages)
    coco = Coco36(root, image_root)
    pairs: dict[str, Callable[[str], Any]] = {
        "train": coco.train,
        "test": lambda code: coco.annotations(code, "test"),
    }
    if validation:
        pairs["valid"] = lambda code: coco.annotations(code, "val")
    if xm3600 is not None:
        pairs["xm3600"] = XM3600(xm3600, xm3600_images).test
    streams: dict[str, Any] = {
        stream: {code: _dataset(stream, code, read(code)) for code in codes}
        for stream, read in pairs.items()
    }
    scenario = multilingual_benchmark(
        order=codes,
        languages={code: EMOJI_LANGUAGES.index(code) for code in codes},
        **streams,
    )
    scenario.teacher_source = scenario.train_stream[0].dataset
    scenario.teacher_captions = coco.shared(codes[0])[2]
    return scenario


def _dataset(stream: str, language: str, pairs: Any) -> AvalancheDataset:
    code = EMOJI_LANGUAGES.index(language)
    first = (_STREAMS.index(stream) * 100 + code) * _ROWS
    images = pairs.image_id
    texts = pairs.text_id if stream == "train" else images
    ids = first + np.arange(len(pairs))
    dataset = make_image_text_dataset(pairs, sample_ids=ids, targets=images)
    return with_facts(dataset, {"image_id": images, "text_id": texts})
