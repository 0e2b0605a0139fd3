"""Frozen copies of the model, shared by all plugins of a run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.common.checks import as_texts, require_choice
from avalanche_clip.common.feature_table import CACHE_BYTES, FeatureTable
from avalanche_clip.common.fingerprint import tower_fingerprint
from avalanche_clip.common.grown import aligned
from avalanche_clip.models.encoders.output import (
    CLIPOutput,
    model_output,
    unit_features,
)
from avalanche_clip.training.templates.frozen_texts import FrozenTexts

KINDS = ("previous", "initial", "ema")
EMA_DECAY = 0.999
"""Share that the running average keeps in each update."""


class Teacher:
    """One frozen copy and its features of the current batch.

    Image features are kept over the experience when training images are the
    same each time, in a table of at most :data:`CACHE_BYTES`.

    :param kind: ``"previous"``, ``"initial"`` or ``"ema"``.
    :param model: the model to copy; the copy has no gradients and is in
        evaluation mode.
    :param strategy: gives precision and budget, and gathers outputs.
    """

    def __init__(self, kind: str, model: nn.Module, strategy: Any = None):
        self.kind = kind
        self.strategy = strategy
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False)
        self.forward_passes = 0
        self._key: Any = None
        self._output: CLIPOutput | None = None
        self._prints: dict[str, str] = {}
        self.table: FeatureTable | None = None

    def fingerprint(self, tower: str) -> str:
        """Hash what the features of a tower depend on, once per copy.

        :param tower: ``"image"`` or ``"text"``.
        """
        if tower not in self._prints:
            self._prints[tower] = tower_fingerprint(self.model, tower)
        return self._prints[tower]

    def renew(self, model: nn.Module) -> None:
        """Copy a model anew, with its structure and state."""
        # First let go of the old copy, so that there is never a second one.
        del self.model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.forget()

    def forget_batch(self) -> None:
        """Drop the features of the current batch."""
        self._key, self._output = None, None

    def forget(self) -> None:
        """Drop all features."""
        self.forget_batch()
        self.table, self._prints = None, {}

    def features(self, batch: Any) -> CLIPOutput:
        """Features of a batch, computed once however often they are asked for.

        Rows are those of ``strategy.global_features``: with several processes
        the outputs of all are gathered.

        :param batch: the mini-batch ``strategy.mb_x``.
        :return: output without gradients, features float32 and normalised.
        """
        if self._key is not batch:
            self._output = self.strategy.gather_output(self._encode(batch))
            # The batch itself is the key: an id may be used again.
            self._key = batch
        assert self._output is not None
        return self._output

    @torch.no_grad()
    def _encode(self, batch: Any) -> CLIPOutput:
        strategy = self.strategy
        self.forward_passes += 1
        self._check_tokens(batch, strategy.model)
        fixed = strategy.deterministic_images and self.kind != "ema"
        keep = fixed and "sample_id" in batch
        known = None
        if keep and self.table is not None:
            known = self.table.get(batch["sample_id"].cpu())
        images, texts = strategy.batch_totals(batch)
        images = 0 if known is not None else images
        strategy.compute.spend("teacher", images=images, texts=texts)
        with strategy.autocast():
            if known is not None:
                return self._encode_texts(batch, known)
            output = self.model(batch)
        if keep:
            self._store(batch, output)
        return output

    def _check_tokens(self, batch: Any, student: Any) -> None:
        """Raise when the student has learned tokens that this model lacks."""
        sizes = [
            getattr(getattr(model, "tokenizer", None), "vocab_size", 0)
            for model in (student, self.model)
        ]
        if sizes[0] > sizes[1] and int(batch["text"].max()) >= sizes[1]:
            raise ValueError(
                f"A text of the batch holds token {int(batch['text'].max())}, but the "
                f"{self.kind!r} teacher knows {sizes[1]} tokens: the vocabulary has "
                "grown since. Use a method that teaches texts of its own, or none on "
                "this stream."
            )

    def _encode_texts(self, batch: Any, known: Tensor) -> CLIPOutput:
        """Complete stored image features and norms by those of the texts."""
        known = known.to(batch["image"].device)
        raw = self.model.encode_text(batch["text"], normalize=False).float()
        texts, norm = unit_features(raw)
        norms = {"image_norm": known[:, -1:], "text_norm": norm}
        return model_output(self.model, known[:, :-1], texts, **norms)

    def _store(self, batch: Any, output: CLIPOutput) -> None:
        norms = (output.aux or {}).get("image_norm")
        if norms is None:
            return
        values = torch.cat([output.image_features, norms], dim=1).float().cpu()
        if self.table is None:
            dataset = self.strategy.adapted_dataset
            if dataset is None or len(dataset) * values.shape[1] * 4 > CACHE_BYTES:
                return
            ids = np.unique(attribute_array(dataset, "sample_id"))
            self.table = FeatureTable(ids)
        self.table.put(batch["sample_id"].cpu(), values)


class TeacherService:
    """At most one teacher per kind, made when a plugin asks for it.

    ``"previous"`` holds the weights deployed by the last experience (after
    patching or averaging, before a plugin replaces them), ``"initial"`` those
    before the first training, ``"ema"`` a running average of the weights in
    training (:data:`EMA_DECAY`).

    :param strategy: the strategy that owns the service.
    """

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self.teachers: dict[str, Teacher] = {}
        self.frozen_texts = FrozenTexts()
        self._forward_state: dict[str, Any] = {}
        self.training = False
        """Whether the running experience has left ``before_training_exp``."""

    def start_experience(self) -> None:
        """Take the weights of this moment as those of ``"previous"``.

        Plugins may say with ``teacher_kinds(strategy)`` which teachers they
        will ask for, so that copies are made before any plugin replaces the
        weights.
        """
        self.training = False
        self._forward_state = _forward_state(self.strategy.model)
        for kind, teacher in self.teachers.items():
            teacher.forget()
            if kind == "previous":
                teacher.renew(self.strategy.model)
        if self.frozen_texts.booked:
            fixed = [t for kind, t in self.teachers.items() if kind != "ema"]
            self.frozen_texts.start_experience([t.fingerprint("text") for t in fixed])
        for contract in self.strategy.contracts:
            what = f"The kinds of {type(contract.wrapped).__name__}.teacher_kinds()"
            kinds = contract.teacher_kinds(self.strategy)
            for kind in as_texts(kinds, what, least=0):
                self.get(kind)

    def start_training(self) -> None:
        """Note that the weights are about to change."""
        self.training = True

    def get(self, kind: str) -> Teacher:
        """Return the teacher of a kind, making it when there is none yet.

        Ask in ``before_training_exp``: that is when copies are made.

        :param kind: ``"previous"``, ``"initial"`` or ``"ema"``.
        :raises ValueError: for an unknown kind, or a teacher asked for after
            training has changed the weights.
        """
        require_choice("teacher", kind, KINDS)
        if kind in self.teachers:
            return self.teachers[kind]
        if kind == "ema" and self.strategy.step.sharding == "fsdp2":
            raise ValueError(
                "The 'ema' teacher follows the whole weights after each step, of which "
                "sharding='fsdp2' leaves a part to each process; use the 'previous' or "
                "'initial' teacher, or sharding='ddp'."
            )
        if kind == "initial" and self.strategy.clock.train_iterations > 0:
            raise ValueError(
                "The initial model is gone: training has begun. Ask for the 'initial' "
                "teacher in before_training_exp of the first experience."
            )
        if kind == "previous" and self.training:
            raise ValueError(
                "The previous model is gone: this experience is being trained. Ask "
                "for the 'previous' teacher in before_training_exp."
            )
        return self._add(kind)

    def text_features(self, kind: str, texts: Any) -> Tensor:
        """Features of a fixed list of texts, kept while weights and texts stay.

        :param kind: ``"previous"`` or ``"initial"``, whose weights are fixed
            during an experience.
        :param texts: such as :class:`ReferenceTexts`.
        :return: float32, normalised, ``(N, D)``, the same on each process.
        :raises ValueError: for ``"ema"``, and as :meth:`get`.
        """
        if kind == "ema":
            raise ValueError(
                "The 'ema' teacher changes at each step, so its text features cannot "
                "be kept; encode them with get('ema').model."
            )
        teacher = self.get(kind)
        return self.frozen_texts(
            self.strategy, teacher.model, teacher.fingerprint("text"), texts
        )

    def _add(self, kind: str) -> Teacher:
        teacher = Teacher(kind, self.strategy.model, self.strategy)
        if kind != "ema":  # plugins may have switched the model since
            _load_forward_state(teacher.model, self._forward_state)
        self.teachers[kind] = teacher
        return teacher

    def forget_batch(self) -> None:
        """Let go of the last batch."""
        for teacher in self.teachers.values():
            teacher.forget_batch()

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the running average towards the model (after each update)."""
        teacher = self.teachers.get("ema")
        if teacher is None:
            return
        model = self.strategy.model
        ours: list[Tensor] = list(model.parameters())
        average: list[Tensor] = list(teacher.model.parameters())
        if [p.shape for p in ours] != [p.shape for p in average]:
            _grow(teacher, model)
            average = list(teacher.model.parameters())
        if average:
            torch._foreach_lerp_(average, ours, 1.0 - EMA_DECAY)
        for buffer, new in zip(teacher.model.buffers(), model.buffers()):
            buffer.copy_(new)
        _load_forward_state(teacher.model, _forward_state(model))
        teacher.forget_batch()

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of all teachers, and their tables, as plain data.

        Tables are stored because features depend on the batch in their last
        bits: a resumed run must use the same ones.
        """
        return {
            "texts": self.frozen_texts.state_dict(),
            "weights": {k: t.model.state_dict() for k, t in self.teachers.items()},
            "tables": {
                k: t.table.state_dict()
                for k, t in self.teachers.items()
                if t.table is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the teachers of a stored run."""
        self.frozen_texts.load_state_dict(state["texts"])
        for kind in self.teachers.keys() - state["weights"].keys():
            del self.teachers[kind]  # made later than what is loaded
        for kind, weights in state["weights"].items():
            if kind not in self.teachers:
                self._add(kind)
            teacher = self.teachers[kind]
            teacher.model.load_state_dict(weights)
            teacher.forget()
            stored = state.get("tables", {}).get(kind)
            if stored is not None:
                teacher.table = FeatureTable(0)
                teacher.table.load_state_dict(stored)


def _forward_state(model: nn.Module) -> dict[str, Any]:
    """What modules with ``forward_state`` do beside their weights, by name."""
    return {
        name: module.forward_state()
        for name, module in model.named_modules()
        if callable(getattr(module, "forward_state", None))
    }


def _load_forward_state(model: nn.Module, state: dict[str, Any]) -> None:
    for name, value in state.items():
        module: Any = model.get_submodule(name)
        module.load_forward_state(value)


def _grow(teacher: Teacher, model: nn.Module) -> None:
    """Give an average the structure of a grown model, keeping its values."""
    old = dict(teacher.model.named_parameters())
    teacher.renew(model)
    for ours, theirs in zip(*aligned(dict(teacher.model.named_parameters()), old)):
        ours.copy_(theirs)
