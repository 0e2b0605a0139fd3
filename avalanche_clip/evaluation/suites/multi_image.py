"""Answers to questions over several images, by dual encoders and by anything else."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.benchmarks.datasets.mirb import (
    MIRB_CONTROLS,
    MIRBContent,
    MultiImageSample,
)
from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.common.pictures import picture_to_rgb, read_picture
from avalanche_clip.evaluation.suites.suite import Encoded

FUSIONS = ("mean", "max", "logsumexp", "concat")
MOST_COUNTED = 20
_TAU = 0.1
_TIE = 1e-6
_YES_NO = ["yes", "no"]
_COUNTED = re.compile(
    r"how many\s+(.+?)(?:\s+(?:are|is|were|do|does|can|appear|in)\b|\s*\?)", re.I
)
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-E])\)|([A-E])[.):])[ \t]*", re.M)


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
    """What answers questions over several images.

    Where :meth:`candidates` knows a closed set, the best of it is taken (of those within
    1e-6 of the best the first), else what :meth:`generate` writes.
    """

    @abstractmethod
    def supports(self, sample: MultiImageSample) -> bool:
        """Whether there is a rule for a question."""

    @abstractmethod
    def candidates(self, samples: Sequence[MultiImageSample]) -> list[list[str]]:
        """Return the closed set of answers of each question, empty without one."""

    @abstractmethod
    def score_candidates(
        self,
        samples: Sequence[MultiImageSample],
        candidates: Sequence[Sequence[str]],
    ) -> list[Tensor | None]:
        """Score each candidate of each question.

        :return: float ``(C,)`` each, higher is better; None if it cannot be done.
        """

    def generate(self, samples: Sequence[MultiImageSample]) -> list[str | None]:
        """Write an answer to each question, None if it cannot be done."""
        raise NotImplementedError(f"A {type(self).__name__} does not generate.")

    def batches(
        self, samples: Sequence[MultiImageSample]
    ) -> list[list[MultiImageSample]]:
        """Divide the questions of a subset into those answered together."""
        return [list(samples)]

    def answers(self, samples: Sequence[MultiImageSample]) -> list[Answer]:
        """Answer the questions of a batch."""
        found = [Answer(None, "there is no rule for it") for _ in samples]
        asked = [k for k, sample in enumerate(samples) if self.supports(sample)]
        sets = self.candidates([samples[k] for k in asked])
        closed = {k: c for k, c in zip(asked, sets, strict=True) if c}
        scores = self.score_candidates(
            [samples[k] for k in closed], list(closed.values())
        )
        texts: dict[int, str | None] = {}
        for (k, candidates), row in zip(closed.items(), scores, strict=True):
            texts[k] = None if row is None else candidates[_first_best(row)]
        rest = [k for k in asked if k not in closed]
        written = self.generate([samples[k] for k in rest]) if rest else []
        texts.update(zip(rest, written, strict=True))
        for k, text in texts.items():
            long = "the prompt is longer than the model's context"
            found[k] = Answer(text, long if text is None else "")
        return found

    def identity(self) -> dict[str, Any]:
        """Tell model and settings from others, as plain data."""
        return {"scorer": type(self).__name__}


def _first_best(scores: Tensor) -> int:
    return int((scores >= scores.max() - _TIE).nonzero()[0])


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
    ends = [match.start() for match in found[1:]] + [len(question)]
    texts = {
        "ABCDE"[k]: question[match.end() : end].strip()
        for k, (match, end) in enumerate(zip(found, ends, strict=True))
    }
    return texts if len(texts) > 1 else {}


def question_without_options(question: str) -> str:
    """Return what stands before the first option, all without options."""
    first = _OPTION.search(question) if parse_options(question) else None
    return question[: first.start()].strip() if first else question.strip()


def counted_class(question: str) -> str:
    """Return the class that a question asks the number of, ``""`` without one.

    >>> counted_class('How many "hot dogs" are there in total?')
    'hot dogs'
    """
    found = _COUNTED.search(question)
    return found[1].strip("\"'\u201c\u201d ") if found else ""


# --------------------------------------------------------- dual encoders' rules
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
    rows = features.double()
    return float(torch.cosine_similarity(rows[1] - rows[0], rows[3] - rows[2], dim=0))


def fused(scores: Tensor, fusion: str, tau: float = _TAU) -> Tensor:
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
    """Lay pictures side by side on white, row by row, nearly as many rows as columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    paper = Image.new("RGB", (columns * width, rows * height), "white")
    for k, picture in enumerate(pictures):
        paper.paste(picture, (k % columns * width, k // columns * height))
    return paper


class _View(NamedTuple):
    """A picture to encode: an image, a cell of its grid, or several side by side."""

    images: tuple[Any, ...]
    grid: tuple[int, int] = (1, 1)
    cell: int = 0

    def key(self) -> Any:
        """Tell views apart: pictures in memory by identity."""
        named = [i if isinstance(i, Path) else id(i) for i in self.images]
        return (*named, self.grid, self.cell)

    def load(self) -> Image.Image:
        opened = [
            read_picture(i) if isinstance(i, (str, Path)) else picture_to_rgb(i)
            for i in self.images
        ]
        picture = opened[0] if len(opened) == 1 else tiled(opened)
        if self.grid == (1, 1):
            return picture
        rows, columns = self.grid
        y, x = divmod(self.cell, columns)
        width, height = picture.width / columns, picture.height / rows
        box = (x * width, y * height, (x + 1) * width, (y + 1) * height)
        return picture.crop(tuple(round(edge) for edge in box))  # type: ignore


class _Views(Sequence[Image.Image]):
    def __init__(self, views: Sequence[_View]):
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: Any) -> Any:
        return self.views[place].load()


class DualEncoderScorer(MultiImageScorer):
    """Answers from cosines of single images and texts, where there is a rule.

    A dual encoder has no joint view of several images; a question without a rule is
    not supported. ``u`` are the images' features, ``w`` those of texts.

    - ``sightseeing``, a name: the best of the names among the subset's golds, by
      ``<u, w("a photo of <name>")>``, fused over images;
    - ``attribute``, and ``sightseeing`` with yes or no: yes if the mean cosine over
      pairs of images exceeds the median of the questions asked together;
    - ``analogy``, four images: yes if ``cos(u2 - u1, u4 - u3)`` exceeds the median;
    - ``count``: per image the expected count under the softmax of ``logit_scale <u,
      w("a photo of <k> <class>")>``, k = 0..20; the sum over images, rounded;
    - ``food``: the best option by ``<u, w("<option>. <question>")>``, fused over
      images; the option comes first and the question is cut to the context;
    - ``image_jigsaw``, if the sample says which image is whole (``whole``) and how it
      is cut (``grid``): the order of patches, as an option names it, whose features
      are nearest to those of the cells of the whole image;
    - all others, and what cannot be read so: not supported.

    Whether a gold is yes or no tells the rule in ``sightseeing``, and golds give the
    names; no label is used otherwise. The median makes about half of the answers yes.

    :param encoded: the model's features, see :meth:`SuiteFeatures.of`.
    :param content: all questions; thresholds are over those answered together, a whole
        subset.
    :param fusion: over the images of a question: one of ``FUSIONS``; ``"concat"``
        encodes them as one picture, side by side, which leaves no rule for sameness,
        analogy and jigsaw.
    :param tau: of ``"logsumexp"``, default 0.1.

    Source: our choice; MIRB (arXiv 2406.12742) scores generative models only.
    """

    def __init__(
        self,
        encoded: Encoded,
        content: MIRBContent,
        *,
        fusion: str = "mean",
        tau: float | None = None,
    ):
        self.encoded, self.content = encoded, content
        self.fusion, self.tau = fusion, check_fusion(fusion, tau)

    # --------------------------------------------------------------------- rules
    def rule(self, sample: MultiImageSample) -> str:
        """Name the rule for a question, ``""`` without one."""
        subset = MIRB_CONTROLS.get(sample.subset, sample.subset)
        count, single = len(sample.images), self.fusion == "concat"
        yes_no = sample.answer.strip().lower() in _YES_NO
        options = parse_options(sample.question)
        if subset == "sightseeing" and not yes_no and count:
            return "names"
        if subset == "count" and count and counted_class(sample.question):
            return "count"
        if subset == "food" and count and options and self._fit(options):
            return "options"
        if single:
            return ""
        if subset in ("attribute", "sightseeing") and count > 1:
            return "same"
        if subset == "analogy" and count == 4:
            return "analogy"
        if subset == "image_jigsaw" and _orders(sample):
            return "jigsaw"
        return ""

    def _fit(self, options: dict[str, str]) -> bool:
        tokenizer = self.encoded.model.tokenizer
        limit = tokenizer.context_length
        return all(len(tokenizer.encode(t)) <= limit for t in options.values())

    def supports(self, sample: MultiImageSample) -> bool:
        return bool(self.rule(sample))

    def candidates(self, samples: Sequence[MultiImageSample]) -> list[list[str]]:
        rules = [self.rule(sample) for sample in samples]
        names = {s.answer for s, r in zip(samples, rules, strict=True) if r == "names"}
        found = []
        for sample, rule in zip(samples, rules, strict=True):
            if rule == "names":
                found.append(sorted(names))
            elif rule in ("same", "analogy"):
                found.append(list(_YES_NO))
            elif rule == "count":
                most = MOST_COUNTED * len(self._views(sample))
                found.append([str(k) for k in range(most + 1)])
            elif rule == "jigsaw":
                found.append(list(_orders(sample)))
            else:
                found.append(list(parse_options(sample.question)) if rule else [])
        return found

    def score_candidates(
        self,
        samples: Sequence[MultiImageSample],
        candidates: Sequence[Sequence[str]],
    ) -> list[Tensor | None]:
        rules = [self.rule(sample) for sample in samples]
        scores: list[Tensor | None] = [None] * len(samples)
        for rule, statistic in (
            ("same", mean_pairwise_cosine),
            ("analogy", analogy_cosine),
        ):
            places = [k for k, r in enumerate(rules) if r == rule]
            if places:
                values = [statistic(self.images(samples[k])) for k in places]
                threshold = torch.tensor(values).quantile(0.5)
                for k, value in zip(places, values, strict=True):
                    # at the threshold: no
                    no = 2 * _TIE if value <= threshold + _TIE else 0.0
                    scores[k] = torch.tensor([value - threshold, no])
        by_rule: dict[str, Callable[..., Tensor]] = {
            "names": self._named,
            "count": self._counted,
            "options": self._optional,
            "jigsaw": self._arranged,
        }
        for k, (sample, rule) in enumerate(zip(samples, rules, strict=True)):
            if rule in by_rule:
                scores[k] = by_rule[rule](sample, candidates[k])
        return scores

    def _named(self, sample: MultiImageSample, names: Sequence[str]) -> Tensor:
        return self._fused(sample, [f"a photo of {name}" for name in names])

    def _optional(self, sample: MultiImageSample, letters: Sequence[str]) -> Tensor:
        options = parse_options(sample.question)
        question = question_without_options(sample.question)
        tokenizer = self.encoded.model.tokenizer
        texts = [option_text(options[k], question, tokenizer) for k in letters]
        return self._fused(sample, texts)

    def _fused(self, sample: MultiImageSample, texts: list[str]) -> Tensor:
        scores = self.images(sample) @ self.encoded.texts(texts).T
        return fused(scores, self.fusion, self.tau)

    def _counted(self, sample: MultiImageSample, numbers: Sequence[str]) -> Tensor:
        name = counted_class(sample.question)
        most = range(MOST_COUNTED + 1)
        texts = self.encoded.texts([f"a photo of {k} {name}" for k in most])
        scale = self.encoded.model.logit_scale.detach().exp().cpu()
        shares = (scale * self.images(sample) @ texts.T).double().softmax(1)
        total = (shares @ torch.arange(len(most), dtype=torch.float64)).sum()
        return -(torch.tensor([int(n) for n in numbers]) - total).abs()

    def _arranged(self, sample: MultiImageSample, letters: Sequence[str]) -> Tensor:
        orders = _orders(sample)
        rows = self.images(sample)
        size = len(rows) // 2  # the cells of the whole image, then the patches
        near = rows[:size] @ rows[size:].T
        cells = torch.arange(size)
        return torch.stack([near[cells, orders[k]].mean() for k in letters])

    # ------------------------------------------------------------------ features
    def _views(self, sample: MultiImageSample) -> list[_View]:
        rule = self.rule(sample)
        if not rule:
            return []
        if rule == "jigsaw":
            whole, grid = sample.extra["whole"], tuple(sample.extra["grid"])
            cells = math.prod(grid)
            patches = [i for k, i in enumerate(sample.images) if k != whole]
            parts = [_View((sample.images[whole],), grid, k) for k in range(cells)]
            return parts + [_View((image,)) for image in patches]
        if self.fusion == "concat":
            return [_View(tuple(sample.images))]
        return [_View((image,)) for image in sample.images]

    @cached_property
    def _rows(self) -> dict[Any, int]:
        return {key: row for row, key in enumerate(self._distinct)}

    @cached_property
    def _distinct(self) -> dict[Any, _View]:
        samples = sorted(self.content.samples, key=lambda sample: sample.id)
        return {view.key(): view for s in samples for view in self._views(s)}

    def images(self, sample: MultiImageSample) -> Tensor:
        """Features of what is seen of a question, normalised, one row per view."""
        tiles = "tiles" if self.fusion == "concat" else "images"
        rows = self.encoded.images(
            f"mirb {self.content.checksum} {tiles}",
            _Views(list(self._distinct.values())),
        )
        return rows[[self._rows[view.key()] for view in self._views(sample)]]


def check_fusion(fusion: str, tau: float | None) -> float:
    """Return the checked ``tau``; refuse one that has no effect."""
    require_choice("fusion", fusion, FUSIONS)
    if tau is not None and fusion != "logsumexp":
        raise ValueError(f"tau={tau!r} has no effect with fusion={fusion!r}; drop it.")
    return _TAU if tau is None else as_finite(tau, "tau", above=0)


def option_text(option: str, question: str, tokenizer: Any) -> str:
    """Put an option before its question, cut by words to what the tokenizer takes.

    :param tokenizer: with ``encode`` and ``context_length``.
    """
    words = question.split()

    def text(count: int) -> str:
        return " ".join([option.rstrip(".") + ".", *words[:count]])

    def too_long(count: int) -> bool:
        return len(tokenizer.encode(text(count))) > tokenizer.context_length

    first_bad = bisect_left(range(len(words) + 1), True, key=too_long)
    return text(first_bad - 1) if first_bad else option


def _orders(sample: MultiImageSample) -> dict[str, list[int]]:
    """Letter -> for each cell the patch that lies in it; empty if not said."""
    grid, whole = sample.extra.get("grid"), sample.extra.get("whole")
    if not (isinstance(grid, (list, tuple)) and len(grid) == 2):
        return {}
    sizes = (*grid, whole)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes):
        return {}
    cells = grid[0] * grid[1]
    if min(grid) < 1 or len(sample.images) != cells + 1 or not 0 <= whole <= cells:
        return {}
    found = {
        letter: [int(number) - 1 for number in re.findall(r"\d+", text)]
        for letter, text in parse_options(sample.question).items()
    }
    whole_orders = all(sorted(order) == list(range(cells)) for order in found.values())
    return found if whole_orders else {}
