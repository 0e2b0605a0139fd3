"""MIRB: multi-image questions to generative models and to dual encoders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from avalanche_clip.benchmarks.datasets.emoji_mirb import emoji_mirb
from avalanche_clip.benchmarks.datasets.mirb import (
    MIRB_DIMENSIONS,
    MIRB_RULES,
    MIRBDataset,
    MIRBSource,
    MultiImageSample,
)
from avalanche_clip.common.checks import as_size, require_choice, require_same
from avalanche_clip.common.files import CHECKSUM, json_checksum, json_text, parse_json
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.functional.intervals import wilson_interval
from avalanche_clip.evaluation.functional.short_answers import (
    PROTOCOLS,
    dimension_averages,
    prior_baselines,
    short_answer_parsed,
    short_answer_score,
)
from avalanche_clip.evaluation.suites.chat import LETTERS, ChatModel, Turn
from avalanche_clip.evaluation.suites.multi_image import (
    Answer,
    DualEncoderScorer,
    MultiImageScorer,
    check_fusion,
    parse_options,
)
from avalanche_clip.evaluation.suites.suite import Autocast, Suite, Values

REASONS = (
    "Do not answer the question. Give concise reasoning steps of solving this problem."
)
THOUGHTS = "Here's the potential logics of answering this question: "
DIRECTLY = "Now, directly answer the question."


@dataclass(frozen=True)
class MIRBResult:
    """What a model knows of MIRB.

    :ivar tasks: subset, dimension or ``"overall"`` -> metric -> value, see
        :func:`mirb`.
    :ivar settings: model, data and protocol that the values belong to, and ``missing``:
        subset -> the file that is wanted.
    :ivar answers: id of a question -> what was answered.
    """

    tasks: Values
    settings: dict[str, Any]
    answers: dict[str, Answer]


class ChatScorer(MultiImageScorer):
    """Answers of a generative model.

    Option letters are told by the scores of the first token, among A to E however many
    options there are; all else is written, at most 15 tokens. Batches are sorted by
    number of images and length. Images that several questions share are encoded for
    each of them.

    :param model: any ``AutoModelForImageTextToText``.
    :param processor: its processor.
    :param protocol: ``"official"`` looks for the letters as they are tokenised alone,
        ``"normalised"`` as they follow the chat template.
    :param reasoning: first let the model write up to 250 tokens of reasoning, which
        then stand behind the question; there is no instruction.
    :param max_pixels: larger images are made smaller; None: never.
    :param batch_size: most questions in a batch.
    :param batch_images: most images in a batch of several questions.

    Source: Zhao et al., 2024 (MIRB, arXiv 2406.12742), released evaluation; letters
    after reasoning are told as those without it (our choice).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        protocol: str = "official",
        reasoning: bool = False,
        max_pixels: int | None = None,
        batch_size: int = 8,
        batch_images: int = 16,
    ):
        require_choice("protocol", protocol, PROTOCOLS)
        require_choice("reasoning", reasoning, (True, False))
        self.chat = ChatModel(model, processor, max_pixels=max_pixels)
        self.protocol, self.reasoning = protocol, bool(reasoning)
        self.batch_size = as_size(batch_size, "batch_size")
        self.batch_images = as_size(batch_images, "batch_images")

    def batches(
        self, samples: Sequence[MultiImageSample]
    ) -> list[list[MultiImageSample]]:
        """Divide questions by number of images and length."""
        found: list[list[MultiImageSample]] = []
        order = sorted(samples, key=lambda s: (len(s.images), len(s.question), s.id))
        for sample in order:
            last, count = found[-1] if found else [], len(sample.images)
            alike = last and bool(last[0].images) == bool(count)
            images = sum(len(s.images) for s in last) + count
            if alike and len(last) < self.batch_size and images <= self.batch_images:
                last.append(sample)
            else:
                found.append([sample])
        return found

    def answers(self, samples: Sequence[MultiImageSample]) -> list[Answer]:
        """Answer a batch."""
        turns, smaller = [], []
        for sample in samples:
            images = [sample.picture(place) for place in range(len(sample.images))]
            small = [self.chat.smaller(image) for image in images]
            smaller.append(any(a is not b for a, b in zip(images, small, strict=True)))
            instruction = "" if self.reasoning else sample.instruction
            turns.append(Turn(instruction, small, sample.question))
        thoughts: list[str | None] = [""] * len(turns)
        if self.reasoning:
            first = [t._replace(question=f"{t.question} {REASONS}") for t in turns]
            thoughts = self.chat.generate(first, 250)
            turns = [
                t._replace(question=f"{t.question}\n{THOUGHTS}{text}\n{DIRECTLY}")
                for t, text in zip(turns, thoughts, strict=True)
            ]
        # a batch is of one subset, so of one kind
        told = self._letters if samples[0].kind == "letter" else self.chat.generate
        long = "the prompt is longer than the model's context"
        return [
            Answer(None, long, down)
            if text is None or thought is None
            else Answer(text, "", down, thought)
            for text, thought, down in zip(told(turns), thoughts, smaller, strict=True)
        ]

    def _letters(self, turns: list[Turn]) -> list[str | None]:
        found: list[str | None] = []
        rows = self.chat.next_logits(turns)
        spaced = self.chat.leads_with_space(turns)
        for row, space in zip(rows, spaced, strict=True):
            ids = self.chat.letter_ids(space and self.protocol == "normalised")
            found.append(None if row is None else LETTERS[int(row[ids].argmax())])
        return found

    def identity(self) -> dict[str, Any]:
        """Model, weights and settings; batches change nothing."""
        settings = {"protocol": self.protocol, "reasoning": self.reasoning}
        return {**super().identity(), **self.chat.identity(), **settings}


def mirb(
    model: Any,
    data: MIRBSource | None = None,
    *,
    protocol: str = "official",
    answers: str | Path | None = None,
    **options: Any,
) -> MIRBResult:
    """Ask a model MIRB's questions.

    Values of a subset: ``acc``, the share right of the questions that are supported,
    with its 95 % interval (``acc_low``, ``acc_high``); ``with_chance``, where questions
    that are not count as guesses (one letter of its options, yes or no, else 0);
    ``supported``, ``unparsed`` (answers of another kind than asked for) and
    ``downscaled``, as shares; what needs no picture (``most_frequent``, ``always_yes``,
    ``always_no``); ``count``, the number of questions. Dimensions are means of subsets,
    ``"overall"`` is the mean of dimensions; ``partial`` is 1 where ``acc`` lacks a
    subset, and there is no overall value then. Control variants are in no mean.

    :param model: a dual encoder (see :class:`DualEncoderScorer`), a generative model
        with its ``processor`` among the options (see :class:`ChatScorer`), or a
        :class:`MultiImageScorer`.
    :param data: folder with MIRB's files, or samples; None for :func:`emoji_mirb`.
    :param protocol: rules of scoring, see :func:`short_answer_score`.
    :param answers: JSON lines file to which answers are appended, batch by batch. An
        evaluation that was stopped goes on from there and ends with the same.
    :param options: of :class:`MIRBSuite` for a dual encoder, else of ``ChatScorer``.
    :raises ValueError: if the file holds answers of another model, data or settings.

    Source: Zhao et al., 2024 (MIRB, arXiv 2406.12742).

    >>> from avalanche_clip.models import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji", "emoji-2010")
    >>> result = mirb(model, emoji_mirb()[:12])
    >>> result.tasks["attribute"]["supported"], result.tasks["attribute"]["always_no"]
    (1.0, 0.5)
    """
    require_choice("protocol", protocol, PROTOCOLS)
    if hasattr(model, "encode_image"):
        if answers is not None:
            raise ValueError(
                f"answers={str(answers)!r} is for generative models; a dual encoder's "
                "answers depend on each other and take seconds. Leave it out."
            )
        suite = MIRBSuite(data, **options)
        suite.check(model)
        found = suite.answers(model, device=next(model.parameters()).device)
        settings, questions = suite.identity(), suite.data
    else:
        if not isinstance(model, MultiImageScorer):
            model = ChatScorer(model, protocol=protocol, **options)
        elif options:
            raise TypeError(f"A scorer has its options; {list(options)} are too many.")
        questions = _dataset(data)
        settings = {**model.identity(), "data": questions.checksum}
        own = settings.get("protocol", protocol)
        if own != protocol:
            raise ValueError(
                f"protocol={protocol!r} is not that of the scorer, {own!r}; give both "
                "the same."
            )
        found = _ask(model, questions, _AnswerFile(answers, settings))
    settings |= {"protocol": protocol, "missing": questions.missing}
    return MIRBResult(mirb_values(questions, found, protocol), settings, found)


class MIRBSuite(Suite):
    """MIRB for dual encoders over a run, see :func:`mirb`.

    :param data: folder with MIRB's files, or samples; None for :func:`emoji_mirb`.
    :param fusion: see :class:`DualEncoderScorer`.
    :param tau: of ``"logsumexp"``.
    :param name: key of the values in a run's results.
    :param batch_size: images, and texts, per forward pass.
    :param num_workers: processes that read images.
    """

    def __init__(
        self,
        data: MIRBSource | None = None,
        *,
        fusion: str = "mean",
        tau: float | None = None,
        name: str = "mirb",
        batch_size: int = 128,
        num_workers: int = 0,
    ):
        super().__init__(name, batch_size=batch_size, num_workers=num_workers)
        check_fusion(fusion, tau)
        self.data = _dataset(data)
        self.missing = self.data.missing
        self.options: dict[str, Any] = {"fusion": fusion, "tau": tau}

    def check(self, model: Any) -> None:
        """Refuse models that are no dual encoders, and data without any rule."""
        super().check(model)
        with self.features.of(model) as encoded:  # encodes nothing yet
            DualEncoderScorer(encoded, self.data, **self.options)

    def identity(self) -> dict[str, Any]:
        """Settings, and the hash of questions and pictures."""
        return {"suite": "MIRB", "data": self.data.checksum, **self.options}

    def answers(self, model: Any, **place: Any) -> dict[str, Answer]:
        """Answer all questions: id -> answer.

        :param place: ``device`` and ``autocast``, see :meth:`Suite.evaluate`.
        """
        with self.features.of(model, **place) as encoded:
            scorer = DualEncoderScorer(encoded, self.data, **self.options)
            # counting depends on the scale too, which is no part of a tower
            scale = float(encoded.model.logit_scale.detach())
            key = (*map(str, self.identity().values()), scale)
            return encoded.result(key, lambda: _ask(scorer, self.data))

    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Score a model, see :func:`mirb` for the metrics."""
        found = self.answers(model, device=device, autocast=autocast)
        return mirb_values(self.data, found)


def mirb_values(
    data: MIRBDataset, answers: Mapping[str, Answer], protocol: str = "official"
) -> Values:
    """Score answers, see :func:`mirb` for the metrics.

    :param data: all questions.
    :param answers: id -> answer, one for each.
    """
    tasks: Values = {}
    for subset, samples in data.subsets().items():
        kind, count = samples[0].kind, len(samples)
        rule = MIRB_RULES[kind]
        letters = "ABCDE" if kind == "letter" else ""
        hits = parsed = lost = 0
        guessed = 0.0
        for sample in samples:
            text = answers[sample.id].text
            if text is None:
                lost, guessed = lost + 1, guessed + _chance(sample)
                continue
            hits += short_answer_score(text, sample.answer, rule, protocol=protocol)
            parsed += short_answer_parsed(text, rule, one_of=letters, protocol=protocol)
        known, values = count - lost, {}
        if known:
            low, high = wilson_interval(hits, known)
            values = {"acc": hits / known, "acc_low": low, "acc_high": high}
            values["unparsed"] = 1 - parsed / known
        golds = [sample.answer for sample in samples]
        smaller = sum(answers[sample.id].downscaled for sample in samples)
        tasks[subset] = {
            **values,
            "with_chance": (hits + guessed) / count,
            "supported": known / count,
            "downscaled": smaller / count,
            **prior_baselines(golds, rule, protocol=protocol),
            "count": count,
        }
    for metric in ("acc", "with_chance"):
        scores = {name: v[metric] for name, v in tasks.items() if metric in v}
        for name, found in dimension_averages(scores, MIRB_DIMENSIONS).items():
            if metric == "acc":
                tasks[name] = found
            elif not found.get("partial"):
                tasks.setdefault(name, {})[metric] = found["acc"]
    return tasks


def _chance(sample: MultiImageSample) -> float:
    if sample.kind == "letter":
        return 1 / (len(parse_options(sample.question)) or len(LETTERS))
    return 0.5 if sample.kind in ("yesno", "contains") and sample.yes_no else 0.0


def _dataset(data: MIRBSource | None) -> MIRBDataset:
    return MIRBDataset(emoji_mirb() if data is None else data)


class _AnswerFile(dict[str, Answer]):
    """Answers that survive: one line of JSON each, behind a line of settings."""

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        lines = self.path.read_bytes().splitlines(True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # it was being written
            os.truncate(self.path, sum(map(len, lines[:-1])))
            lines.pop()
        rows = list(map(self._row, lines))
        if rows:
            do = "give another file, or the same model, data and settings"
            require_same(f"What {self.path} was answered by", rows[0], settings, do)
        else:
            self._append([settings])
        for row in rows[1:]:
            name = row.pop("id")
            self[name] = Answer(**row)

    def add(self, answers: Mapping[str, Answer]) -> None:
        new = {name: a for name, a in answers.items() if name not in self}
        if self.path is not None:
            self._append({"id": name, **asdict(answer)} for name, answer in new.items())
        self.update(new)

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = [{**row, CHECKSUM: json_checksum(row)} for row in rows]
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(json_text(row, self.path) + "\n" for row in whole)
            file.flush()
            os.fsync(file.fileno())

    def _row(self, line: bytes) -> dict[str, Any]:
        assert self.path is not None
        row = parse_json(line.decode("utf-8", "replace"), self.path)
        if not isinstance(row, dict) or row.pop(CHECKSUM, "") != json_checksum(row):
            raise ValueError(f"{self.path} is damaged: {line[:60]!r}; move it away.")
        return row


def _ask(
    scorer: MultiImageScorer, data: MIRBDataset, known: _AnswerFile | None = None
) -> dict[str, Answer]:
    found = _AnswerFile(None, {}) if known is None else known
    for subset, samples in data.subsets().items():
        for batch in progress(scorer.batches(samples), subset):
            ids = [sample.id for sample in batch]
            # a batch is answered as a whole, so that padding is always the same
            if not all(name in found for name in ids):
                found.add(dict(zip(ids, scorer.answers(batch), strict=True)))
    return {sample.id: found[sample.id] for sample in data}
