"""Settings of methods, chosen on validation drawings: one search that studies share.

A study says which candidates each method has; :func:`search` tries all, and keeps
those tried, their scores and the best in ``settings/<study>.json``, which runs of the
study read with :func:`chosen`. No drawing of the tested style is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.lock import FolderLock

FOLDER = Path(__file__).parent / "settings"
WAIT = 60.0
"""Seconds to wait for another search that writes its settings."""
Candidate = Mapping[str, Any]


def study_of(study: str, pretrained: str | None, usual: str = "icons") -> str:
    """Name of the settings of a study from other weights than its usual ones.

    >>> study_of("languages_emoji", "icons"), study_of("languages_emoji", "a/b.pt")
    ('languages_emoji', 'languages_emoji_b')
    """
    own = pretrained and pretrained != usual
    return f"{study}_{Path(pretrained).stem}" if own else study


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
    Searches of other methods may run side by side.

    :param study: name of the file.
    :param grid: method -> its candidates, each the changes to the study's settings.
    :param score: higher is better; called with method and candidate. A run that is
        found by its folder is not repeated. A candidate whose training diverges
        (``FloatingPointError``), or whose score is no number, is worse than all others
        and kept without a score.
    :param facts: what all runs have in common: base, seed, length.
    :return: method -> best candidate, the first of equals.
    :raises ValueError: if all candidates of a method diverge, after the others.
    """
    path = Path(folder) / f"{study}.json"
    best, diverged = {}, []
    for method, candidates in grid.items():
        found = _methods(path).get(method, {})
        tried = [candidate for candidate, _ in found.get("tried", [])]
        same = tried == [dict(c) for c in candidates]
        if not (same and same_facts(found["facts"], facts)):
            pairs = [[dict(c), _scored(score, method, c)] for c in candidates]
            known = [pair for pair in pairs if pair[1] is not None]
            top = max(known, key=lambda pair: pair[1])[0] if known else None
            found = {"chosen": top, "tried": pairs, "facts": dict(facts)}
            _keep(path, method, found)
        if found["chosen"] is None:
            diverged.append(method)
        else:
            best[method] = dict(found["chosen"])
    if diverged:
        raise ValueError(
            f"all candidates of {', '.join(diverged)} diverged; try others."
        )
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


def _scored(
    score: Callable[[str, Candidate], float], method: str, candidate: Candidate
) -> float | None:
    """Score of a candidate, None if it diverged."""
    try:
        value = float(score(method, candidate))
    except FloatingPointError:
        return None
    return value if math.isfinite(value) else None


def _keep(path: Path, method: str, found: Mapping[str, Any]) -> None:
    """Add a method to those in the file, which others may add to meanwhile."""
    with _held(path.parent):
        kept = {**_methods(path), method: dict(found)}
        write_json(path, {"methods": dict(sorted(kept.items()))}, checksum=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which nobody holds for long."""
    lock, end = FolderLock(folder), time.monotonic() + WAIT
    while True:
        try:
            lock.acquire()
            break
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()


def chosen(study: str, method: str, *, folder: str | Path = FOLDER) -> dict[str, Any]:
    """Return the settings that were chosen for a method.

    :raises ValueError: if the study has none for it.
    """
    path = Path(folder) / f"{study}.json"
    kept = {m: f["chosen"] for m, f in _methods(path).items() if f["chosen"]}
    if method not in kept:
        raise ValueError(
            f"{path.name} has no settings for {method!r}, only for "
            f"{', '.join(kept) or 'none'}; choose them with --search."
        )
    return dict(kept[method])


def _methods(path: Path) -> dict[str, Any]:
    """What a file holds of each method, nothing if there is no file."""
    if not path.is_file():
        return {}
    kept = read_json(path, checksum=True, rewrite="delete it and search again")
    found: dict[str, Any] = kept["methods"]
    return found


def search_table(study: str, *, folder: str | Path = FOLDER) -> str:
    """Return what was tried as text, one line per candidate, the best marked.

    A best candidate with the least or greatest value that was tried of a setting is
    said to be at the edge: there may be better ones beyond.
    """
    lines = []
    for method, found in _methods(Path(folder) / f"{study}.json").items():
        for candidate, score in found["tried"]:
            mark, words = " ", [f"{key} {value}" for key, value in candidate.items()]
            if candidate == found["chosen"]:
                mark = "*"
                ends = _edges(candidate, [tried for tried, _ in found["tried"]])
                words += [f"at the edge of {' and '.join(ends)}"] if ends else []
            shown = "diverged" if score is None else f"{score:8.4f}"
            lines.append(f"{mark} {method:24} {shown}  {', '.join(words)}")
    return "\n".join(lines)


def _edges(best: Candidate, tried: Sequence[Candidate]) -> list[str]:
    """Settings whose value is the least or greatest of several that were tried."""
    found = []
    for key, value in best.items():
        values = {c[key] for c in tried if isinstance(c.get(key), (int, float))}
        if len(values) > 1 and value in (min(values), max(values)):
            found.append(key)
    return found
