"""Compute budgets: how long to train, and what was spent on what.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226): compute is
iterations x batch x multiply-adds (MACs) of one forward pass of both towers,
the same for every time step and method.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from avalanche_clip.common.checks import as_finite, as_size, require_choice

KINDS = ("train", "teacher", "search", "fisher", "reference")
"""What forward passes are spent on."""
_LATEST = 16
BACKWARD = ("train", "reference")
"""Those that a backward pass follows."""


class ComputeBudget:
    """Plan the iterations of an experience and account for forward passes.

    :param iterations: optimiser steps per experience.
    :param samples: training pairs per experience, replayed ones included.
    :param macs: MACs per experience, counted as TiC-CLIP does: one forward
        pass of both towers per training pair, backward passes not counted.
    :raises ValueError: if more than one limit is given, one is not positive, or
        iterations or samples are no integer.
    """

    def __init__(
        self,
        *,
        iterations: int | None = None,
        samples: int | None = None,
        macs: float | None = None,
    ):
        limits = {"iterations": iterations, "samples": samples, "macs": macs}
        given = {k: v for k, v in limits.items() if v is not None}
        if len(given) > 1:
            raise ValueError(f"Give one budget only; got {given}.")
        sizes = {k: as_size(v, f"budget_{k}") for k, v in given.items() if k != "macs"}
        self.iterations = sizes.get("iterations")
        self.samples = sizes.get("samples")
        self.macs = None if macs is None else as_finite(macs, "budget_macs", above=0)
        self.experiences: list[dict[str, dict[str, float]]] = []
        self.ahead = False
        """Whether what is booked so far came before the first experience."""
        self.evaluation = {"images": 0, "texts": 0}
        """What evaluations of streams and suites have encoded, outside the budget."""
        self.parameters: list[dict[str, int]] = []
        """Numbers of parameters of the model in each experience."""

    @property
    def limited(self) -> bool:
        """Whether a limit was given; without one epochs decide."""
        return not (self.iterations is None and self.samples is None and not self.macs)

    def planned_iterations(
        self, batch_size: int, macs_per_pair: float = 0.0, factor: float = 1.0
    ) -> int:
        """Number of optimiser steps that the budget pays for.

        :param batch_size: pairs per step, over all processes.
        :param macs_per_pair: forward MACs of one pair, for a MAC budget.
        :param factor: multiple of the budget (Oracle: the step's number).
        :return: at least 1.
        :raises ValueError: if the budget does not pay for one step.
        """
        if self.iterations is not None:
            steps = self.iterations * factor
        elif self.samples is not None:
            steps = self.samples * factor / batch_size
        elif self.macs is not None:
            steps = self.macs * factor / (batch_size * macs_per_pair)
        else:
            raise ValueError("This budget has no limit; plan by epochs.")
        planned = int(steps + 1e-9)
        if planned < 1:
            raise ValueError(
                f"The budget pays for {steps:.3f} steps of {batch_size} pairs; raise "
                "it or make the batch smaller."
            )
        return planned

    def start_experience(self) -> None:
        """Open the account of another experience.

        What was booked before the first one belongs to it.
        """
        if self.ahead:
            self.ahead = False
            return
        if self.experiences:
            last = self.experiences.pop()
            self.experiences.append(_shared(last, self.experiences))
        self.experiences.append({})

    def count_parameters(self, model: Any) -> None:
        """Note how many parameters the running experience has and trains.

        :param model: a module; shared parameters count once.
        """
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        count = {
            "all": sum(size for size, _ in sizes),
            "trainable": sum(size for size, trained in sizes if trained),
        }
        del self.parameters[max(len(self.experiences) - 1, 0) :]
        self.parameters.append(_shared(count, self.parameters))

    def spend(
        self,
        kind: str,
        *,
        images: int,
        texts: int,
        steps: int = 0,
        samples: int | None = None,
    ) -> None:
        """Book forward passes on the running experience.

        :param kind: one of :data:`KINDS`.
        :param images: images encoded.
        :param texts: captions encoded.
        :param steps: optimiser steps.
        :param samples: samples trained on, where these are not the images encoded.
        """
        require_choice("kind", kind, KINDS)
        if not self.experiences:
            self.start_experience()
            self.ahead = True
        entry = self.experiences[-1].setdefault(
            kind, {"images": 0, "texts": 0, "steps": 0}
        )
        entry["images"] += images
        entry["texts"] += texts
        entry["steps"] += steps
        if samples is not None:
            entry["samples"] = entry.get("samples", 0) + samples

    def spend_evaluation(self, *, images: int, texts: int) -> None:
        """Book forward passes of an evaluation, beside the budget.

        :param images: images encoded.
        :param texts: captions or prompts encoded.
        """
        self.evaluation["images"] += images
        self.evaluation["texts"] += texts

    def report(self, macs: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Summarise what was spent.

        :param macs: forward MACs per ``"image"`` and per ``"text"``.
        :return: ``samples`` and ``steps`` of training per experience, and with
            ``macs`` also ``macs`` per experience and kind and ``total_macs``.
            ``full_macs`` counts what is trained on three times (forward and
            backward), as hardware does.
        """
        train = [e.get("train", {}) for e in self.experiences]
        report: dict[str, Any] = {
            "samples": [int(t.get("samples", t.get("images", 0))) for t in train],
            "steps": [int(t.get("steps", 0)) for t in train],
        }
        if macs is None:
            return report
        rows = [
            {
                kind: entry["images"] * macs["image"] + entry["texts"] * macs["text"]
                for kind, entry in experience.items()
            }
            for experience in self.experiences
        ]
        report["macs"] = rows
        report["total_macs"] = float(sum(sum(row.values()) for row in rows))
        report["full_macs"] = float(
            sum(
                sum(v * (3 if k in BACKWARD else 1) for k, v in r.items()) for r in rows
            )
        )
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the account as plain data."""
        names = ("experiences", "parameters", "evaluation", "ahead")
        return copy.deepcopy({name: getattr(self, name) for name in names})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the account by a stored one."""
        self.experiences = copy.deepcopy(state["experiences"])
        self.parameters = copy.deepcopy(list(state.get("parameters", ())))
        self.evaluation = dict(state.get("evaluation", {"images": 0, "texts": 0}))
        self.ahead = state.get("ahead", False)


def _shared(entry: dict[str, Any], known: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry, or an equal one of those before: long streams hold few different."""
    return next((e for e in reversed(known[-_LATEST:]) if e == entry), entry)
