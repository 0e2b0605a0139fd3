"""What a run notes for its report: losses, chance, examples of what it finds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.logging import BaseLogger
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.flat import raw_item, raw_text
from avalanche_clip.common.files import replacing
from avalanche_clip.common.randomness import kept_rng
from avalanche_clip.models.images.transforms import as_pil, to_rgb

POINTS = 40
"""Points of a loss curve per step, at most."""
SETS, EACH = 16, 6
"""Test sets of a stream that examples are of, and how many of each."""
FIRST = 4096
"""Examples are taken from so many first items, whose texts are kept in memory."""
SIDE = 96
"""Pixels of the longer side of an example's picture."""
_TIE = 1e-6


class Observed(BaseLogger):
    """Notes what the report of a run shows beside its matrices.

    The mean of the loss and of each of its terms over parts of a step; the score of
    guessing that metrics tell as ``chance``; and of a few items at equal distances in
    each test set what the model finds for the picture. A test set's items are the same
    each time. Nothing is computed that evaluation has not computed, but for the scores
    of these items against all texts.

    :param folder: of the run; small copies of the pictures go to ``examples/`` in it.
    """

    def __init__(self, folder: Path):
        # Each process has one; Avalanche lets the main one alone make loggers.
        self.folder = folder
        self.row: int | None = None
        self._search: _Search | None = None
        self._sums: dict[str, Tensor] = {}
        self._state: dict[str, Any] = {
            "iterations": 0,
            "since": 0,
            "terms": {},
            "ends": [],
            "chance": {},
            "examples": {},
        }

    # ------------------------------------------------------------------ state
    def stored(self) -> dict[str, Any]:
        """What checkpoints hold, as plain data."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return copy.deepcopy({**self._state, "sums": sums})

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back what :meth:`stored` returned; None of a run that stored nothing."""
        if state is not None:
            state = copy.deepcopy(state)
            sums = state.pop("sums")
            self._sums = {
                name: torch.tensor(value, dtype=torch.float64)
                for name, value in sums.items()
            }
            self._state = state

    def results(self, sizes: dict[str, int], final: tuple[str, ...]) -> dict[str, Any]:
        """What ``results.json`` holds: ``losses``, ``chance`` and ``examples``.

        :param sizes: test sets of each evaluated stream.
        :param final: streams that have a row before the training and one after it.
        """
        state = self.stored()
        terms = state["terms"]
        if len(terms) == 2:  # the whole and its only part
            terms = {"loss": terms["loss"]}
        chance = {
            stream: {
                name: [found.get(str(j), {}).get(name) for j in range(sizes[stream])]
                for name in {name for row in found.values() for name in row}
            }
            for stream, found in state["chance"].items()
        }
        examples = {
            stream: [
                {**item, "found": [item["found"][k] for k in (0, -1)]}
                if stream in final
                else item
                for _, item in sorted(items.items())
            ]
            for stream, items in state["examples"].items()
        }
        found = {"terms": terms, "ends": state["ends"]}
        return {
            "losses": found if terms else {},
            "chance": {s: dict(sorted(row.items())) for s, row in chance.items()},
            "examples": examples,
        }

    # --------------------------------------------------------------- training
    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Ignore metrics."""

    def after_training_iteration(
        self, strategy: Any, values: Any, **kwargs: Any
    ) -> None:
        """Add the loss of a step, for which nothing waits."""
        state = self._state
        for name, term in {"loss": strategy.loss, **strategy.loss_terms}.items():
            value = term.detach().double().sum()
            known = self._sums.get(name)
            self._sums[name] = value if known is None else value + known.to(value)
        state["iterations"] += 1
        state["since"] += 1
        if state["since"] >= strategy.planned_iterations / POINTS:
            self._note()

    def after_training_exp(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Note the end of a step."""
        self._note()
        place = int(strategy.experience.current_experience)
        self._state["ends"].append([place, self._state["iterations"]])

    def _note(self) -> None:
        state, sums = self._state, self._sums
        for name, total in sums.items():
            line = state["terms"].setdefault(name, {"at": [], "mean": []})
            line["at"].append(state["iterations"])
            line["mean"].append(float(total) / state["since"])
        self._sums, state["since"] = {}, 0

    # ------------------------------------------------------------- evaluation
    @contextmanager
    def evaluating(self, row: int) -> Iterator[None]:
        """Note what is evaluated in a ``with`` block, as that row of ``E``.

        :param row: 0 before the stream.
        """
        self.row = row
        try:
            yield
        finally:
            self.row = self._search = None

    def before_eval_exp(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Choose examples of a test set."""
        place = int(strategy.experience.current_experience)
        if self.row is None or place >= SETS:
            self._search = None
            return
        last = min(len(strategy.experience.dataset), FIRST) - 1
        chosen = np.unique(np.linspace(0, last, EACH).round().astype(int)).tolist()
        kind = _PairSearch if strategy.reads_captions else _ClassSearch
        self._search = kind([k for k in chosen if k >= 0])

    def after_eval_iteration(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Look at the examples in a batch, or for them."""
        if self._search is not None:
            self._search.add(strategy)

    def after_eval_exp(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Note what was found, and what guessing would score."""
        if self.row is None:
            return
        experience = strategy.experience
        stream, place = (
            experience.origin_stream.name,
            int(experience.current_experience),
        )
        known: dict[str, float] = {}
        if not strategy.reads_captions and len(strategy.label_ids):
            known["Top1_Acc_Exp"] = 1 / len(strategy.label_ids)
        for metric in strategy.evaluator.metrics:
            known |= getattr(metric, "chance", {})
        self._state["chance"].setdefault(stream, {})[str(place)] = known
        if self._search is not None:
            with kept_rng():
                for position, text, hit, found in self._search.result(strategy):
                    self._keep(stream, place, position, experience, text, hit, found)

    def _keep(
        self,
        stream: str,
        place: int,
        position: int,
        experience: Any,
        text: str,
        hit: bool,
        found: str,
    ) -> None:
        assert self.row is not None
        items = self._state["examples"].setdefault(stream, {})
        key = f"{place:03}_{position:06}"
        if key not in items:
            picture = self._picture(f"{stream}_{key}", experience.dataset, position)
            items[key] = {"set": place, "picture": picture, "text": text, "found": []}
        cells = items[key]["found"]
        cells.extend([None] * (self.row + 1 - len(cells)))
        cells[self.row] = [hit, "" if hit else found]

    def _picture(self, name: str, dataset: Any, position: int) -> str | None:
        """Write a small copy of a picture; None if it is none that can be shown."""
        name = f"examples/{''.join(c if c.isalnum() else '_' for c in name)}.png"
        try:
            image = as_pil(to_rgb(raw_item(dataset, position)[0])).copy()
        except (TypeError, ValueError, OSError):
            return None
        if distributed.is_main_process():
            image.thumbnail((SIDE, SIDE))
            with replacing(self.folder / name) as path:
                image.save(path, format="PNG")
        return name


# --------------------------------------------------------------------- searches
class _Search:
    """What is found for some items of a test set, which comes in batches.

    :param positions: of these items.
    """

    def __init__(self, positions: list[int]):
        self.positions = positions
        self.seen = 0

    def add(self, strategy: Any) -> None:
        """Take a batch."""
        raise NotImplementedError

    def result(self, strategy: Any) -> Iterator[tuple[int, str, bool, str]]:
        """Position, own text, whether it was found, and what was found instead."""
        raise NotImplementedError

    def _here(self, count: int) -> dict[int, int]:
        """Position -> place in a batch, of the items that lie in it."""
        first, self.seen = self.seen, self.seen + count
        return {k: k - first for k in self.positions if first <= k < self.seen}


class _ClassSearch(_Search):
    """Which class each item is taken for."""

    def __init__(self, positions: list[int]):
        super().__init__(positions)
        self.found: dict[int, tuple[int, int]] = {}

    def add(self, strategy: Any) -> None:
        """Classify those in a batch."""
        for position, place in self._here(len(strategy.mb_targets)).items():
            best = int(strategy.mb_output[place].argmax())
            ids = int(strategy.mb_targets[place]), int(strategy.mb_classes[best])
            self.found[position] = ids

    def result(self, strategy: Any) -> Iterator[tuple[int, str, bool, str]]:
        """Names of the classes."""
        name = strategy.spaces.prompts.name
        for position, (own, taken) in self.found.items():
            yield position, name(own), own == taken, name(taken)


class _PairSearch(_Search):
    """Which text is nearest to each picture, as retrieval ranks them."""

    def __init__(self, positions: list[int]):
        super().__init__(positions)
        self.images: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.own = torch.full((len(positions),), -torch.inf)
        self.best = torch.full((len(positions),), -torch.inf)
        self.taken = [(0, 0)] * len(positions)
        """Item and number of the caption of the best foreign text."""

    def add(self, strategy: Any) -> None:
        """Compare the texts of a batch with the pictures, once all are known."""
        features, batch = strategy.mb_features, strategy.mb_x
        images, first = features.image_features, self.seen
        keys = batch.get("image_key")
        for position, place in self._here(len(images)).items():
            self.images[position] = images[place].detach().float().cpu()
            if keys is not None:
                self.keys[position] = keys[place].cpu()
        texts = features.text_features.detach().float().cpu()
        owner = batch.get("owner", torch.arange(len(images))).cpu()
        marks = None if keys is None else keys.cpu()[owner]
        self.waiting.append((texts, owner + first, marks))
        if len(self.images) == len(self.positions):
            for part in self.waiting:
                self._compare(*part)
            self.waiting = []

    def _compare(self, texts: Tensor, rows: Tensor, marks: Tensor | None) -> None:
        images = torch.stack([self.images[k] for k in self.positions])
        scores = images @ texts.T
        own = rows == torch.tensor(self.positions)[:, None]
        if marks is not None:  # equal pictures are one
            keys = torch.stack([self.keys[k] for k in self.positions])
            own |= (keys[:, None] == marks).flatten(2).all(2)
        self.own = self.own.maximum(scores.where(own, -torch.inf).amax(1))
        values, places = scores.where(~own, -torch.inf).max(1)
        for k, (value, place) in enumerate(zip(values, places.tolist(), strict=True)):
            if value > self.best[k]:
                number = int((rows[:place] == rows[place]).sum())
                self.best[k], self.taken[k] = value, (int(rows[place]), number)

    def result(self, strategy: Any) -> Iterator[tuple[int, str, bool, str]]:
        """First caption of the item, and the text that was nearest."""
        dataset = strategy.experience.dataset
        for k, position in enumerate(self.positions if self.images else ()):
            texts, (item, number) = _captions(dataset, position), self.taken[k]
            found = [*_captions(dataset, item), ""][: number + 1][-1]
            hit = bool(self.own[k] > self.best[k] + _TIE) or found in texts
            yield position, texts[0], hit, found


def _captions(dataset: Any, position: int) -> list[str]:
    text = raw_text(dataset, position)
    texts = text if isinstance(text, (list, tuple)) else [text]
    if not texts or not all(isinstance(part, str) for part in texts):
        return [f"text of item {position}"]  # token ids
    return [str(part) for part in texts]
