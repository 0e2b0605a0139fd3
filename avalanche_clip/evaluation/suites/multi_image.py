"""Answers to questions over several images: one interface, and dual encoders' rules."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.benchmarks.datasets.mirb import (
    MIRB_CONTROLS,
    MIRBDataset,
    MultiImageSample,
)
from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.evaluation.suites.suite import Encode, Encoded

FUSIONS = ("mean", "max", "logsumexp", "concat")
MOST_COUNTED = 20
_TIE = 1e-6
_ENDS = "are|is|were|do|does|can|appear|in"
_COUNTED = re.compile(
    rf"how many\s+(?:[^\"?]*\"([^\"]+)\"|(.+?)(?:\s+(?:{_ENDS})\b|\s*\?))", re.I
)
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-E])\)|([A-E])[.):])[ \t]*", re.M)
View = Callable[[], Image.Image]


@dataclass(frozen=True)
class Answer:
    """What a model says to one question.

    :ivar text: None if the question is not supported.
    :ivar reason: why it is not.
    :ivar downscaled: whether an image was made smaller.
    :ivar reasoning: what was written before the answer.
    """

    text: str | None
    reason: str = ""
    downscaled: bool = False
    reasoning: str = ""


class MultiImageScorer(ABC):
    """What answers questions over several images."""

    @abstractmethod
    def answers(self, samples: Sequence[MultiImageSample]) -> list[Answer]:
        """Answer the questions of a batch, see :meth:`batches`."""

    def batches(
        self, samples: Sequence[MultiImageSample]
    ) -> list[list[MultiImageSample]]:
        """Divide the questions of one subset into those answered together: all."""
        return [list(samples)]

    def identity(self) -> dict[str, Any]:
        """Tell model and settings from others, as plain data."""
        return {"scorer": type(self).__name__}


# ---------------------------------------------------------- reading questions
def parse_options(question: str) -> dict[str, str]:
    """Find the option texts of a question: ``A.``, ``A)``, ``A:`` or ``(A)``.

    :return: letter -> text, from A on without a gap; empty with fewer than two.

    >>> parse_options("Which has nuts? A. the first (B) the second")
    {'A': 'the first', 'B': 'the second'}
    """
    found: list[re.Match[str]] = []
    for match in _OPTION.finditer(question):
        if (match[1] or match[2]) == "ABCDE"[len(found) :][:1]:
            found.append(match)
    ends = [*(match.start() for match in found[1:]), len(question)]
    texts = [
        question[m.end() : end].strip() for m, end in zip(found, ends, strict=False)
    ]
    return dict(zip("ABCDE", texts, strict=False)) if len(texts) > 1 else {}


def counted_class(question: str) -> str:
    """Return the class that a question asks the number of, ``""`` without one.

    What stands in double quotes, else what follows "how many".

    >>> counted_class('How many "hot dogs" are there in total?')
    'hot dogs'
    """
    found = _COUNTED.search(question)
    return found[1] or found[2] if found else ""


def option_text(option: str, question: str, tokenizer: Any) -> str:
    """Put an option before its question, cut by words to what the tokenizer takes.

    :param question: its options are left out.
    :param tokenizer: with ``encode`` and ``context_length``.
    :return: ``""`` where the option alone is too long.
    """
    first = _OPTION.search(question) if parse_options(question) else None
    words = [option, *question[: first.start() if first else None].split()]

    def too_long(count: int) -> bool:
        ids = tokenizer.encode(" ".join(words[:count]))
        return len(ids) > tokenizer.context_length

    fit = bisect_left(range(1, len(words) + 1), True, key=too_long)
    return " ".join(words[:fit])


def patch_orders(sample: MultiImageSample) -> dict[str, list[int]]:
    """Read a jigsaw: letter -> for each cell of the whole image the patch in it.

    :return: empty unless the sample says which image is ``whole`` and its ``grid``, and
        each option is an order of the others, counted from 1.
    """
    grid: Any = sample.extra.get("grid")
    whole: Any = sample.extra.get("whole")
    sizes = [whole, *grid] if isinstance(grid, list) else []
    if len(sizes) != 3 or not all(isinstance(n, int) and n >= 0 for n in sizes):
        return {}
    texts = parse_options(sample.question)
    found = {k: [int(n) - 1 for n in re.findall(r"\d+", t)] for k, t in texts.items()}
    cells = list(range(math.prod(grid)))
    fits = len(sample.images) == len(cells) + 1 and whole <= len(cells)
    return (
        found
        if cells and fits and all(sorted(o) == cells for o in found.values())
        else {}
    )


# ---------------------------------------------------------------- statistics
def mean_pairwise_cosine(features: Tensor) -> float:
    """Mean cosine over pairs of images.

    :param features: one row per image, two at least, of any length.
    """
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    pairs = list(combinations(range(len(rows)), 2))
    return sum(float(rows[a] @ rows[b]) for a, b in pairs) / len(pairs)


def analogy_cosine(features: Tensor) -> float:
    """Cosine of the steps from the first to the second and the third to the fourth.

    :param features: four rows, taken as they are.

    >>> analogy_cosine(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]]))
    1.0
    """
    a, b, c, d = features.double()
    return float(torch.cosine_similarity(b - a, d - c, dim=0))


def fused(scores: Tensor, fusion: str, tau: float) -> Tensor:
    """Fuse the scores of several images.

    :param scores: ``(n, C)``, one row per image.
    :param fusion: ``"mean"``, ``"max"``, or ``"logsumexp"``: ``tau * log sum exp(s /
        tau)``, between the two.
    :return: ``(C,)``.
    """
    if fusion == "max":
        return scores.amax(0)
    if fusion == "logsumexp":
        return tau * (scores / tau).logsumexp(0)
    return scores.mean(0)


def tiled(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures side by side on white, about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    paper = Image.new("RGB", (columns * width, rows * height), "white")
    for k, picture in enumerate(pictures):
        paper.paste(picture, (k % columns * width, k // columns * height))
    return paper


def check_fusion(fusion: str, tau: float | None) -> float:
    """Return the checked ``tau``; refuse one that has no effect."""
    require_choice("fusion", fusion, FUSIONS)
    if tau is not None and fusion != "logsumexp":
        raise ValueError(f"tau={tau!r} has no effect with fusion={fusion!r}; drop it.")
    return 0.1 if tau is None else as_finite(tau, "tau", above=0)


# ------------------------------------------------------------------ the scorer
class DualEncoderScorer(MultiImageScorer):
    """Answers from cosines of single images and texts, where there is a rule.

    A dual encoder has no joint view of several images; a question without a rule is
    not supported. ``u`` are the images' features, ``w`` those of texts.

    - ``sightseeing``, a name: the best of the names among the subset's golds, by
      ``<u, w("a photo of <name>")>``, fused over images;
    - ``attribute``, and ``sightseeing`` with yes or no: yes if the mean cosine over
      pairs of images exceeds the median over the subset's questions of that kind;
    - ``analogy``, four images: yes if ``cos(u2 - u1, u4 - u3)`` exceeds the median;
    - ``count``: per image the expected count under the softmax of ``logit_scale <u,
      w("a photo of <k> <class>")>``, k = 0..20; the sum over images, rounded;
    - ``food``: the best option by ``<u, w("<option> <question>")>``, fused over
      images; the option comes first and the question is cut to the context;
    - ``image_jigsaw``, if the sample says which image is whole (``whole``) and how it
      is cut (``grid``): the order of patches, as an option names it, whose features
      are nearest to those of the cells of the whole image;
    - all others, and what cannot be read so: not supported.

    Whether a gold is yes or no tells the rule in ``sightseeing``, and golds give the
    names; no label is used otherwise. The median makes at most half of the answers yes.
    Of candidates within 1e-6 of the best, the first in their order is taken.

    :param encoded: the model's features, see :meth:`SuiteFeatures.of`.
    :param data: all questions; names and medians are those of its subsets.
    :param fusion: over the images of a question: one of ``FUSIONS``; ``"concat"``
        encodes them as one picture, side by side, which leaves no rule for sameness,
        analogy and jigsaw.
    :param tau: of ``"logsumexp"``, default 0.1.

    Source: our choice; MIRB (arXiv 2406.12742) scores generative models only.
    """

    def __init__(
        self,
        encoded: Encoded,
        data: MIRBDataset,
        *,
        fusion: str = "mean",
        tau: float | None = None,
    ):
        self.encoded, self.data, self.fusion = encoded, data, fusion
        self.tau = check_fusion(fusion, tau)
        self.rules = {sample.id: self._rule(sample) for sample in data}
        """Id of a question -> its rule, ``""`` without one."""
        if not any(self.rules.values()):
            raise ValueError(
                f"No rule lets a dual encoder answer any of the {len(data)} questions "
                f"with fusion={fusion!r}; give other subsets, or a generative model."
            )
        self.names = sorted({s.answer for s in data if self.rules[s.id] == "names"})

    def _rule(self, sample: MultiImageSample) -> str:
        subset = MIRB_CONTROLS.get(sample.subset, sample.subset)
        count = len(sample.images)
        if not count:
            return ""
        if subset == "count":
            return "count" if counted_class(sample.question) else ""
        if subset == "food":
            texts = self._options(sample)
            return "options" if texts and all(texts) else ""
        if subset == "sightseeing" and not sample.yes_no:
            return "names"
        if self.fusion == "concat":
            return ""
        if subset == "image_jigsaw":
            return "jigsaw" if patch_orders(sample) else ""
        if subset == "analogy":
            return "analogy" if count == 4 else ""
        return "same" if subset in ("attribute", "sightseeing") and count > 1 else ""

    def answers(self, samples: Sequence[MultiImageSample]) -> list[Answer]:
        """Answer questions of the data, in any batches."""
        return [
            Answer(self._chosen(sample, self.rules[sample.id]))
            if self.rules[sample.id]
            else Answer(None, "there is no rule for it")
            for sample in samples
        ]

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Median of the statistic of each subset that has one."""
        values: dict[str, list[float]] = {}
        for sample in self.data:
            if statistic := _STATISTICS.get(self.rules[sample.id]):
                found = values.setdefault(sample.subset, [])
                found.append(statistic(self.images(sample)))
        return {subset: float(np.median(found)) for subset, found in values.items()}

    def _chosen(self, sample: MultiImageSample, rule: str) -> str:
        seen = self.images(sample)
        if rule in _STATISTICS:
            above = _STATISTICS[rule](seen) - self.thresholds[sample.subset]
            return "yes" if above > _TIE else "no"
        if rule == "jigsaw":
            orders, cells = patch_orders(sample), torch.arange(len(seen) // 2)
            near = seen[: len(cells)] @ seen[len(cells) :].T
            fits = [near[cells, order].mean() for order in orders.values()]
            return list(orders)[_first_best(torch.stack(fits))]
        texts = torch.stack([self._texts[text] for text in self._asked(sample)])
        scores = self._rows(sample, self._matched[0]) @ texts.T
        if rule == "count":
            scale = self.encoded.model.logit_scale.detach().exp().cpu()
            shares = (scale * scores).double().softmax(1)
            numbers = torch.arange(texts.shape[0], dtype=torch.float64)
            return str(math.floor(float((shares @ numbers).sum()) + 0.5))
        names = self.names if rule == "names" else list(parse_options(sample.question))
        return names[_first_best(fused(scores, self.fusion, self.tau))]

    # ------------------------------------------------------------------ features
    def _options(self, sample: MultiImageSample) -> list[str]:
        tokenizer = self.encoded.model.tokenizer
        options = parse_options(sample.question).values()
        return [option_text(o, sample.question, tokenizer) for o in options]

    def _asked(self, sample: MultiImageSample) -> list[str]:
        """Texts that a question's images are compared with."""
        rule = self.rules[sample.id]
        if rule == "count":
            name = counted_class(sample.question)
            return [f"a photo of {k} {name}" for k in range(MOST_COUNTED + 1)]
        if rule == "names":
            return [f"a photo of {name}" for name in self.names]
        return self._options(sample) if rule == "options" else []

    def _views(self, sample: MultiImageSample) -> list[tuple[Any, View]]:
        """What is encoded of a question: a key, and what makes the picture."""
        rule = self.rules[sample.id]
        if not rule:
            return []
        if self.fusion == "concat":
            return [(sample.id, partial(_tiles, sample))]
        keys = [i if isinstance(i, (str, Path)) else id(i) for i in sample.images]
        views: list[tuple[Any, View]] = [
            (key, partial(sample.picture, k)) for k, key in enumerate(keys)
        ]
        if rule == "jigsaw":
            (key, whole), grid = views.pop(sample.extra["whole"]), sample.extra["grid"]
            views = [
                ((key, *grid, cell), partial(_cell, whole, grid, cell))
                for cell in range(math.prod(grid))
            ] + views
        return views

    @cached_property
    def _pictures(self) -> tuple[list[Any], str, Any]:
        samples = sorted(self.data, key=lambda sample: sample.id)
        views = {key: view for s in samples for key, view in self._views(s)}
        key = f"mirb {self.data.checksum} {self.fusion == 'concat'}"
        return list(views), key, _Pictures(list(views.values()))

    @cached_property
    def _images(self) -> dict[Any, Tensor]:
        views, *source = self._pictures
        return dict(zip(views, self.encoded.images(*source), strict=True))

    @cached_property
    def _matched(self) -> tuple[dict[Any, Tensor], Encode]:
        """What is compared with texts, and what encodes these."""
        views, *source = self._pictures
        rows, encode, _ = self.encoded.matched(*source)
        return dict(zip(views, rows, strict=True)), encode

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        texts = sorted({text for sample in self.data for text in self._asked(sample)})
        return dict(zip(texts, self._matched[1](texts), strict=True))

    def images(self, sample: MultiImageSample) -> Tensor:
        """Features of what is seen of a question, normalised, one row per view."""
        return self._rows(sample, self._images)

    def _rows(self, sample: MultiImageSample, rows: dict[Any, Tensor]) -> Tensor:
        return torch.stack([rows[key] for key, _ in self._views(sample)])


_STATISTICS = {"same": mean_pairwise_cosine, "analogy": analogy_cosine}


class _Pictures(Sequence[Image.Image]):
    def __init__(self, views: Sequence[View]):
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: Any) -> Any:
        return self.views[place]()


def _tiles(sample: MultiImageSample) -> Image.Image:
    return tiled([sample.picture(k) for k in range(len(sample.images))])


def _cell(whole: View, grid: Sequence[int], cell: int) -> Image.Image:
    picture, (y, x) = whole(), divmod(cell, grid[1])
    width, height = picture.width / grid[1], picture.height / grid[0]
    box = (x * width, y * height, (x + 1) * width, (y + 1) * height)
    return picture.crop(tuple(map(round, box)))  # type: ignore[arg-type]


def _first_best(scores: Tensor) -> int:
    return int((scores >= scores.max() - _TIE).nonzero()[0])
