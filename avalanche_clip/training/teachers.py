"""Frozen copies of the model, shared by all plugins of a run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.distributed import gather_output
from avalanche_clip.models.output import CLIPOutput

KINDS = ("previous", "initial", "ema")


class Teacher:
    """One frozen copy and its features of the current batch.

    :param kind: ``"previous"``, ``"initial"`` or ``"ema"``.
    :param model: the model to copy; the copy has no gradients and is in
        evaluation mode.
    """

    def __init__(self, kind: str, model: nn.Module):
        self.kind = kind
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.forward_passes = 0
        self._service: TeacherService | None = None
        self._key: Any = None
        self._output: CLIPOutput | None = None
        self._images: dict[int, tuple[Tensor, Tensor]] = {}

    def renew(self, model: nn.Module) -> None:
        """Take over the weights of a model, in place where shapes allow."""
        try:
            self.model.load_state_dict(model.state_dict())
        except RuntimeError:  # the model grew
            self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.forget()

    def forget(self) -> None:
        """Drop cached features."""
        self._key, self._output = None, None
        self._images.clear()

    def features(self, batch: Any) -> CLIPOutput:
        """Features of a batch, computed once however often they are asked for.

        Rows are those of ``strategy.global_features``: with several processes
        the outputs of all are gathered.

        :param batch: the mini-batch ``strategy.mb_x``.
        :return: output without gradients, features float32 and normalised.
        """
        if self._key is not batch:
            self._output = gather_output(self._encode(batch))
            # The batch itself is the key: an id may be used again.
            self._key = batch
        assert self._output is not None
        return self._output

    @torch.no_grad()
    def _encode(self, batch: Any) -> CLIPOutput:
        service = self._service
        self.forward_passes += 1
        if service is None:
            return self.model(batch)
        strategy = service.strategy
        cached = self._cached_images(batch) if service.deterministic else None
        images = 0 if cached is not None else len(batch)
        strategy.compute.spend("teacher", images=images, texts=len(batch["text"]))
        with strategy.autocast():
            if cached is None:
                output = self.model(batch)
            else:
                text = self.model.encode_text(batch["text"])
                output = CLIPOutput(
                    cached[0],
                    text,
                    self.model.logit_scale.exp(),
                    {"image_norm": cached[1]},
                )
        if service.deterministic and cached is None:
            self._store_images(batch, output)
        return output

    def _cached_images(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        rows = [self._images.get(i) for i in batch["sample_id"].tolist()]
        if any(row is None for row in rows):
            return None
        device = batch["image"].device
        return (
            torch.stack([row[0] for row in rows if row is not None]).to(device),
            torch.stack([row[1] for row in rows if row is not None]).to(device),
        )

    def _store_images(self, batch: Any, output: CLIPOutput) -> None:
        norms = (output.aux or {}).get("image_norm")
        if norms is None:
            norms = torch.ones(len(batch))
        features = output.image_features.cpu()
        for row, key in enumerate(batch["sample_id"].tolist()):
            self._images[key] = (features[row], norms[row].cpu())


class TeacherService:
    """At most one teacher per kind, made when a plugin asks for it.

    ``"previous"`` holds the weights at the start of the running experience
    (after patching or averaging), ``"initial"`` those before the first
    training, ``"ema"`` a running average of the weights in training.

    :param strategy: the strategy that owns the service.
    """

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self.teachers: dict[str, Teacher] = {}
        self.ema_decay = 0.999
        self._renewed: set[str] = set()

    @property
    def deterministic(self) -> bool:
        """Whether training images are the same each time they are drawn."""
        return bool(getattr(self.strategy, "deterministic_images", False))

    def start_experience(self) -> None:
        """Let ``"previous"`` be renewed from the weights of this moment."""
        self._renewed.clear()
        for kind in self.teachers:
            self._refresh(kind)

    def get(self, kind: str, *, decay: float | None = None) -> Teacher:
        """Return the teacher of a kind, making it when there is none yet.

        Ask in ``before_training_exp``: that is when copies are made.

        :param kind: ``"previous"``, ``"initial"`` or ``"ema"``.
        :param decay: of the running average, in ``[0, 1)``.
        :raises ValueError: for an unknown kind, a decay outside its range, or
            ``"initial"`` asked for after training has begun.
        """
        if kind not in KINDS:
            raise ValueError(f"Teacher {kind!r} is unknown; use one of {KINDS}.")
        if decay is not None:
            if not 0.0 <= decay < 1.0:
                raise ValueError(f"decay={decay} must lie in [0, 1).")
            self.ema_decay = decay
        if kind not in self.teachers:
            self._make(kind)
        return self.teachers[kind]

    def _make(self, kind: str) -> None:
        clock = self.strategy.clock
        started = clock.train_iterations > 0
        if kind == "initial" and started:
            raise ValueError(
                "The initial model is gone: training has begun. Ask for the 'initial' "
                "teacher in before_training_exp of the first experience."
            )
        if kind == "previous" and clock.train_exp_iterations > 0:
            raise ValueError(
                "The previous model is gone: this experience is being trained. Ask "
                "for the 'previous' teacher in before_training_exp."
            )
        teacher = Teacher(kind, self.strategy.model)
        teacher._service = self
        self.teachers[kind] = teacher
        self._renewed.add(kind)

    def _refresh(self, kind: str) -> None:
        if kind == "previous" and kind not in self._renewed:
            self.teachers[kind].renew(self.strategy.model)
            self._renewed.add(kind)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the running average towards the model (after each update)."""
        teacher = self.teachers.get("ema")
        if teacher is None:
            return
        ours = dict(self.strategy.model.named_parameters())
        for name, average in teacher.model.named_parameters():
            average.lerp_(ours[name].to(average.dtype), 1.0 - self.ema_decay)
        buffers = dict(self.strategy.model.named_buffers())
        for name, buffer in teacher.model.named_buffers():
            buffer.copy_(buffers[name])
        teacher.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of all teachers as plain data."""
        return {
            "decay": self.ema_decay,
            "weights": {k: t.model.state_dict() for k, t in self.teachers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the teachers of a stored run."""
        self.ema_decay = float(state["decay"])
        for kind, weights in state["weights"].items():
            if kind not in self.teachers:
                teacher = Teacher(kind, self.strategy.model)
                teacher._service = self
                self.teachers[kind] = teacher
            self.teachers[kind].model.load_state_dict(weights)
            self.teachers[kind].forget()
            self._renewed.add(kind)


__all__ = ["KINDS", "Teacher", "TeacherService"]
