"""MMVP: questions about confusing images to models that answer in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from avalanche_clip.benchmarks.datasets.mmvp import MMVPDataset
from avalanche_clip.common.checks import (
    as_size,
    require_choice,
    require_known,
    require_length,
    require_some,
)
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.functional.intervals import wilson_interval
from avalanche_clip.evaluation.suites.chat import ChatModel, Turn

_METHODS = ("generate", "log-probability")
_MARKED = re.compile(r"\(([ab])\)", re.I)
_ALONE = re.compile(r"[(\[]?([ab])[)\].:,]?", re.I)
_LEADING = re.compile(r"([ab])[).:]", re.I)


def parse_option(answer: str | None, options: Sequence[str]) -> str | None:
    """Find the option that an answer in words chooses, by rules alone.

    In this order: the one letter in parentheses, ``(a)`` or ``(b)``, if the answer has
    only one of them; a letter that is all of the answer, or stands before ``)``, ``.``
    or ``:`` at its start; the one option whose text occurs as whole words. Case does
    not count. A letter inside a sentence is an English article, and no choice.

    :param answer: what a model wrote, or None.
    :param options: texts of (a) and (b).
    :return: ``"a"`` or ``"b"``, or None if the answer chooses neither.

    Source: our choice, in place of the language model that grades in the released
    code of MMVP.

    >>> parse_option("It is a closed wing", ("Open", "Closed"))
    'b'
    """
    require_length(options, 2, "options", "letter")
    text = (answer or "").strip()
    marked = {letter.lower() for letter in _MARKED.findall(text)}
    if len(marked) == 1:
        return marked.pop()
    found = _ALONE.fullmatch(text) or _LEADING.match(text)
    if found:
        return found[1].lower()
    named = [
        "ab"[number]
        for number, option in enumerate(options)
        if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.I)
    ]
    return named[0] if len(named) == 1 else None


class MMVPResult(NamedTuple):
    """Scores of a model on MMVP, and what they come from.

    ``scores``: ``pair_acc``, pairs with both answers right, the score (chance is 1/4),
    with a 95 % interval ``pair_acc_low``, ``pair_acc_high``; ``question_acc``;
    ``unparsed``, the share of answers that choose neither option, which are wrong;
    fractions in [0, 1]; and ``count``, the number of questions. ``letters``: chosen
    options, None for neither, question by question. ``answers``: what was written,
    if anything. ``labels``: which right answers were used, see
    :class:`MMVPDataset <avalanche_clip.benchmarks.datasets.mmvp.MMVPDataset>`.
    ``method``: how options were chosen.
    """

    scores: dict[str, float]
    letters: list[str | None]
    answers: list[str | None]
    labels: str
    method: str


def mmvp_scores(
    letters: Sequence[str | None], answers: Sequence[str], pair_ids: Sequence[int]
) -> dict[str, float]:
    """Score chosen options; a pair is right if all its questions are.

    :param letters: chosen options, ``"a"`` or ``"b"``, None for neither, ``(Q,)``.
    :param answers: right options, ``"a"`` or ``"b"``, ``(Q,)``.
    :param pair_ids: pair of each question, ``(Q,)``, in any order.
    :return: see :class:`MMVPResult`.
    :raises ValueError: for other letters, or lengths that differ.

    >>> scores = mmvp_scores("aabaab", "aabbba", [1, 1, 2, 2, 3, 3])
    >>> round(scores["pair_acc"], 3), scores["question_acc"]
    (0.333, 0.5)
    """
    require_length(letters, len(answers), "letters", "question")
    ids = as_integer_array(pair_ids, "pair_ids", f"{len(answers)}").tolist()
    require_some(ids, "answers")
    require_known((one for one in letters if one is not None), "ab", "letters")
    require_known(answers, "ab", "answers")
    right = [one == other for one, other in zip(letters, answers, strict=True)]
    pairs: dict[int, bool] = {}
    for pair, good in zip(ids, right, strict=True):
        pairs[pair] = pairs.get(pair, True) and good
    hits = sum(pairs.values())
    low, high = wilson_interval(hits, len(pairs))
    return {
        "pair_acc": hits / len(pairs),
        "pair_acc_low": low,
        "pair_acc_high": high,
        "question_acc": sum(right) / len(right),
        "unparsed": sum(letter is None for letter in letters) / len(right),
        "count": float(len(right)),
    }


def mmvp(
    model: ChatModel,
    data: MMVPDataset | str | Path,
    *,
    method: str = "generate",
    max_new_tokens: int = 1024,
    batch_size: int = 8,
) -> MMVPResult:
    """Ask a generative model the questions of MMVP, one image and no history each.

    A question and its options follow the image, as the model's chat template has it.
    Decoding is greedy, where the released code samples at temperature 0.2.

    :param model: with its processor, see :class:`ChatModel
        <avalanche_clip.evaluation.suites.chat.ChatModel>`.
    :param data: the questions, or their folder (labels as released).
    :param method: ``"generate"``: what the model writes is read by
        :func:`parse_option`; ``"log-probability"``: the likelier of ``(a)`` and ``(b)``
        is chosen, neither if they are equal.
    :param max_new_tokens: at most; 1024 in the released code.
    :param batch_size: questions per forward pass.
    :raises FileNotFoundError: if files are missing.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209).
    """
    require_choice("method", method, _METHODS)
    data = MMVPDataset(data) if isinstance(data, (str, Path)) else data
    letters: list[str | None] = []
    written: list[str | None] = []
    parts = torch.arange(len(data)).split(as_size(batch_size, "batch_size"))
    for places in progress(parts, "MMVP"):
        block = [data[place] for place in places.tolist()]
        turns = [Turn("", [item.image], item.prompt) for item in block]
        if method == "generate":
            texts = model.generate(turns, max_new_tokens)
            written += texts
            letters += [parse_option(t, item.options) for t, item in zip(texts, block)]
            continue
        for found in model.log_probs(turns, [["(a)", "(b)"]] * len(turns)):
            a, b = (0.0, 0.0) if found is None else found.tolist()
            letters.append(None if a == b else "ab"[b > a])
    pairs = [(number + 1) // 2 for number in data.numbers]
    scores = mmvp_scores(letters, data.answers, pairs)
    return MMVPResult(scores, letters, written, data.labels, method)
