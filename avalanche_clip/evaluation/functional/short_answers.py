"""Short answers scored by rules of strings, without a judge model (MIRB)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from avalanche_clip.common.checks import require_choice, require_some

ANSWER_RULES = ("exact", "number", "yes-no", "contains")
PROTOCOLS = ("official", "normalised")

_CARDINALS = "zero one two three four five six seven eight nine ten".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_DIGITS = {word: str(number) for number, word in enumerate(_CARDINALS)}
_DIGITS |= {word: str(number) for number, word in enumerate(_ORDINALS, 1)}
_AROUND = " \t\r\n\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb()[]{}"
_LETTER = re.compile(r"[A-Za-z]")
_MARKED = re.compile(r"\(([A-Za-z])\)|\[([A-Za-z])\]")
_LEADING = re.compile(r"([A-Za-z])\s*[)\].:]")


def short_answer_score(
    prediction: str, gold: str | int, rule: str, *, protocol: str = "official"
) -> bool:
    r"""Say whether a short answer is right.

    The official protocol first strips the answer and cuts it at the first line feed,
    or where there is none at the first full stop, unless nothing would be left:

    - ``"exact"``: equal to the gold, whatever the case;
    - ``"number"``: the first digits (``\d+``), or the whole answer if it is one of
      zero to ten or first to tenth, equal the gold;
    - ``"yes-no"``: gold yes: right if ``yes`` occurs anywhere; gold no: if it does
      not, so that silence is right;
    - ``"contains"``: the gold occurs anywhere; for golds yes and no the rule above.

    The normalised protocol cuts at a full stop only before white space or the end,
    strips quotes and brackets, takes ``-?\d+(\.\d+)?`` as a number and compares by
    value, wants yes and no as whole words (the first of them counts, silence is
    wrong), and finds names as whole words. Where the gold is one letter, an option
    in brackets, or in front of ``) ] . :``, is taken. Never put both in one table.

    :param prediction: what the model wrote, without its prompt.
    :param gold: text or integer.
    :param rule: one of ``ANSWER_RULES``.
    :param protocol: ``"official"`` or ``"normalised"``.
    :raises ValueError: for another rule or protocol, or a gold of ``"yes-no"`` that
        is neither yes nor no.

    Source: Zhao et al., 2024 (MIRB, arXiv 2406.12742), released evaluation; the
    normalised protocol is our choice.

    >>> short_answer_score("There are 3 dogs. No, 4.", 3, "number")
    True
    >>> [short_answer_score("(A)", "A", "exact", protocol=p) for p in PROTOCOLS]
    [False, True]
    """
    require_choice("rule", rule, ANSWER_RULES)
    require_choice("protocol", protocol, PROTOCOLS)
    gold = str(gold)
    truth = gold.strip().lower()
    if rule == "yes-no" and truth not in ("yes", "no"):
        raise ValueError(f"The gold {gold!r} of a yes-no question must be yes or no.")
    if rule == "contains" and truth in ("yes", "no"):
        rule = "yes-no"
    answer = _cut(prediction, protocol).lower()
    official = protocol == "official"
    if rule == "yes-no":
        if official:
            return ("yes" in answer) == (truth == "yes")
        return (re.findall(r"\b(yes|no)\b", answer) or [""])[0] == truth
    if rule == "contains":
        if official:
            return gold.lower() in answer
        return bool(re.search(rf"(?<!\w){re.escape(_bare(gold))}(?!\w)", answer))
    if rule == "number":
        answer = _number(answer, official)
    if official:
        return answer == gold.lower()
    if rule == "number":
        try:
            return float(answer) == float(_number(gold.lower(), official))
        except ValueError:  # there is none
            return False
    if _LETTER.fullmatch(_bare(gold)):
        answer = _letter(answer)
    return _bare(answer) == _bare(gold)


def short_answer_parsed(
    prediction: str, rule: str, *, one_of: str = "", protocol: str = "official"
) -> bool:
    """Say whether an answer is of the kind that is asked for, right or wrong.

    :param prediction: what the model wrote.
    :param rule: one of ``ANSWER_RULES``. A number must hold a number; yes-no ``yes``
        or ``no`` (anywhere; as a whole word if normalised); else anything is enough.
    :param one_of: letters of the options, for questions that have some: the answer
        must be one letter.
    :param protocol: see :func:`short_answer_score`.

    >>> short_answer_parsed("Maybe", "yes-no"), short_answer_parsed("two", "number")
    (False, True)
    """
    require_choice("rule", rule, ANSWER_RULES)
    require_choice("protocol", protocol, PROTOCOLS)
    answer = _cut(prediction, protocol).lower()
    official = protocol == "official"
    if rule == "yes-no":
        return bool(re.search("yes|no" if official else r"\b(yes|no)\b", answer))
    if rule == "number":
        return bool(_number(answer, official))
    if one_of:
        answer = answer if official else _letter(answer)
        return len(answer) == 1 and answer in one_of.lower()
    return bool(answer)


def prior_baselines(
    golds: Sequence[str], rule: str, *, protocol: str = "official"
) -> dict[str, float]:
    """Score what needs no picture, beside which each score should be read.

    :param golds: of one subset.
    :param rule: see :func:`short_answer_score`.
    :return: shares right of ``"always_yes"`` and ``"always_no"``, where a gold is
        one of them, and of ``"most_frequent"``: the most frequent gold, the first in
        alphabetical order among equals.

    >>> prior_baselines(["yes", "no", "yes"], "yes-no")["most_frequent"]
    0.6666666666666666
    """
    require_some(golds, "golds")
    counts = Counter(map(str, golds))
    guesses = {"most_frequent": min(counts, key=lambda gold: (-counts[gold], gold))}
    if any(gold.strip().lower() in ("yes", "no") for gold in counts):
        guesses |= {"always_yes": "yes", "always_no": "no"}
    found = {}
    for name, guess in guesses.items():
        hits = [short_answer_score(guess, g, rule, protocol=protocol) for g in golds]
        found[name] = sum(hits) / len(hits)
    return found


def dimension_averages(
    scores: Mapping[str, float], dimensions: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Average subsets within dimensions, and dimensions within the whole.

    Both are unweighted: neither the number of questions nor that of subsets counts.

    :param scores: subset -> score; those of no dimension, such as control variants,
        do not count.
    :param dimensions: dimension -> its subsets, all of them.
    :return: ``{dimension: {"acc": value, "partial": 0.0}}``; with ``partial`` 1.0
        where a subset is missing, and no entry where all are. ``"overall"`` is there
        only if no dimension is partial.

    >>> dimension_averages({"a": 1, "b": 0.5, "c": 0}, {"X": ["a", "b"], "Y": ["c"]})
    {'X': {'acc': 0.75, 'partial': 0.0}, 'Y': {'acc': 0.0, 'partial': 0.0}, \
'overall': {'acc': 0.375}}
    """
    found = {}
    for dimension, subsets in dimensions.items():
        there = [scores[name] for name in subsets if name in scores]
        if there:
            partial = float(len(there) < len(subsets))
            found[dimension] = {"acc": sum(there) / len(there), "partial": partial}
    whole = not any(f["partial"] for f in found.values())
    if found and len(found) == len(dimensions) and whole:
        values = [f["acc"] for f in found.values()]
        found["overall"] = {"acc": sum(values) / len(values)}
    return found


def _cut(prediction: str, protocol: str) -> str:
    text = prediction.strip()
    end = text.find("\n")
    if end <= 0 and protocol == "official":
        end = text.find(".")
    elif end <= 0:
        stop = re.search(r"\.(?=\s|$)", text)
        end = stop.start() if stop else -1
    return text[:end] if end > 0 else text


def _number(answer: str, official: bool) -> str:
    found = re.search(r"\d+" if official else r"-?\d+(\.\d+)?", answer)
    if found:
        return found[0]
    return _DIGITS.get(answer if official else answer.strip(_AROUND), "")


def _bare(text: str) -> str:
    return text.strip(_AROUND).removesuffix(".").strip(_AROUND).lower()


def _letter(answer: str) -> str:
    """Take the option out of an answer, or return the answer as it is."""
    marked = {a or b for a, b in _MARKED.findall(answer)}
    if len(marked) == 1:
        return marked.pop()
    leading = _LEADING.match(answer)
    return leading[1] if leading and not marked else answer.strip(_AROUND)
