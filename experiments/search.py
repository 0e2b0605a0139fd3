"""Settings of methods, chosen on validation drawings: one search that studies share.

A study says which candidates each method has; :func:`search` tries all, and keeps
those tried, their scores and the best in ``settings/<study>.json``, which runs of the
study read with :func:`chosen`. No drawing of the tested style is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json, write_json

FOLDER = Path(__file__).parent / "settings"
Candidate = Mapping[str, Any]


def search(
    study: str,
    grid: Mapping[str, Sequence[Candidate]],
    score: Callable[[str, Candidate], float],
    facts: Mapping[str, Any],
    *,
    folder: str | Path = FOLDER,
) -> dict[str, dict[str, Any]]:
    """Try the candidates of each method; keep and return the best ones.

    Methods that are kept from earlier, with the same candidates and facts, are not
    tried again; a method that was tried is kept when the next one is interrupted.

    :param study: name of the file.
    :param grid: method -> its candidates, each the changes to the study's settings.
    :param score: higher is better; called with method and candidate. A run that is
        found by its folder is not repeated.
    :param facts: what all runs have in common: base, seed, length.
    :return: method -> best candidate, the first of equals.
    """
    path = Path(folder) / f"{study}.json"
    kept = _read(path)["methods"] if path.is_file() else {}
    best = {}
    for method, candidates in grid.items():
        found = kept.get(method, {})
        tried = [candidate for candidate, _ in found.get("tried", [])]
        if tried != [dict(c) for c in candidates] or found["facts"] != dict(facts):
            scores = [float(score(method, candidate)) for candidate in candidates]
            top = dict(candidates[scores.index(max(scores))])
            pairs = [[dict(c), s] for c, s in zip(candidates, scores, strict=True)]
            kept[method] = {"chosen": top, "tried": pairs, "facts": dict(facts)}
            write_json(path, {"methods": dict(sorted(kept.items()))}, checksum=True)
        best[method] = kept[method]["chosen"]
    return best


def base_facts(model: str, pretrained: str) -> dict[str, str]:
    """The start of all runs, for ``facts``: its names, and a hash of its weights.

    Weights may be made anew under their name.
    """
    from avalanche_clip.models import create_dual_encoder

    base = create_dual_encoder(model, pretrained).state_fingerprint()
    return {"model": model, "pretrained": pretrained, "base": base}


def same_facts(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a file holds what is wanted; files without a hash of a base have any.

    >>> same_facts({"seed": 1}, {"seed": 1, "base": "6f..."})
    True
    """
    return kept == {k: v for k, v in wanted.items() if k != "base" or k in kept}


def chosen(study: str, method: str, *, folder: str | Path = FOLDER) -> dict[str, Any]:
    """Return the settings that were chosen for a method.

    :raises ValueError: if the study has none for it.
    """
    path = Path(folder) / f"{study}.json"
    kept = _read(path)["methods"] if path.is_file() else {}
    if method not in kept:
        raise ValueError(
            f"{path.name} has no settings for {method!r}, only for "
            f"{', '.join(kept) or 'none'}; choose them with --search."
        )
    return dict(kept[method]["chosen"])


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(
        path, checksum=True, rewrite="delete it and search again"
    )
    return found


def search_table(study: str, *, folder: str | Path = FOLDER) -> str:
    """Return what was tried as text, one line per candidate."""
    lines = []
    for method, found in _read(Path(folder) / f"{study}.json")["methods"].items():
        for candidate, score in found["tried"]:
            mark = "*" if candidate == found["chosen"] else " "
            words = ", ".join(f"{key} {value}" for key, value in candidate.items())
            lines.append(f"{mark} {method:24} {score:8.4f}  {words}")
    return "\n".join(lines)
