"""Evaluation of images against class vectors that are built once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_integer
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.models.encoders.output import CLIPOutput, unit_features
from avalanche_clip.training.templates.class_matrix import ClassMatrices
from avalanche_clip.training.templates.frozen_texts import tower_fingerprint
from avalanche_clip.training.templates.step_mixin import StepMixin

VariantContext = Callable[[int], AbstractContextManager[Any]]


class ClassScoringMixin(StepMixin):
    """Logits of evaluation batches, and the class vectors that they need."""

    class_prompts: Any
    contracts: Any
    label_ids: tuple[int, ...]
    _evaluation_groups: Callable[[], list[tuple[int, ...]]]
    _eval_matrices: dict[Any, Tensor]
    _eval_space: Any
    _key: Callable[[int], Any]
    _matrices: ClassMatrices
    _space_columns: Callable[[], tuple[Any, ...]]
    _tokenizer: Any

    def _scores(self, output: CLIPOutput, images: Tensor, texts: Tensor) -> Tensor:
        logits = output.logit_scale * images @ texts.T
        bias = (output.aux or {}).get("logit_bias")
        return logits if bias is None else logits + bias

    def _model_tokenizer(self) -> Any:
        tokenizer: Any = self.model.tokenizer
        return tokenizer

    def _evaluate_batch(self) -> Tensor:
        images = self._evaluate_images()
        scale: Any = self.model.logit_scale
        bias = getattr(self.model, "logit_bias", None)
        aux = {"image_norm": images[1]}
        if bias is not None:
            aux["logit_bias"] = bias.detach().float().reshape(())
        none = images[0].new_zeros(0, images[0].shape[1])
        output = CLIPOutput(
            images[0], none, scale.detach().float().exp().reshape(()), aux
        )
        self.mb_features = output
        for contract in self.contracts:
            logits = contract.class_logits(self, output.image_features)
            if logits is not None:
                return logits
        matrix = self.class_matrix()
        self.mb_features = output._replace(text_features=matrix)
        return self._class_scores(output.image_features, matrix)

    def _evaluate_images(self) -> tuple[Tensor, Tensor]:
        asked = [contract.image_context(self) for contract in self.contracts]
        contexts = [context for context in asked if context is not None]
        encode: Any = self.model.encode_image
        with contexts[0] if contexts else nullcontext(), self.autocast():
            raw = encode(self.mb_x["image"], normalize=False)
        return unit_features(raw.float())

    def _class_scores(self, images: Tensor, matrix: Tensor) -> Tensor:
        """Logits of images; classes with equal prompts get equal ones."""
        assert self.mb_features is not None
        equal = self._space_columns()[1]
        if equal is None:
            return self._scores(self.mb_features, images, matrix)
        first, inverse = equal
        return self._scores(self.mb_features, images, matrix[first])[:, inverse]

    def variant_logits(
        self,
        image_features: Tensor,
        variants: Tensor,
        *,
        context: VariantContext,
        fingerprint: Callable[[int], str | None] | None = None,
    ) -> Tensor:
        """Logits of images that meet different forms of the text tower.

        Class vectors are built for the variants that occur, and kept (see
        :meth:`class_matrix`).

        :param image_features: of the evaluation batch, ``(B, D)``.
        :param variants: integer per image, ``(B,)``: a router's id, for example.
        :param context: variant -> context in which the model's text tower
            encodes with it.
        :param fingerprint: variant -> hash of all that its text features depend
            on; None, or returning None: that of the whole text tower.
        :return: ``(B, C)``.
        """
        logits = image_features.new_empty(len(image_features), len(self.label_ids))
        for number in torch.unique(variants).tolist():
            mark = None if fingerprint is None else fingerprint(number)
            matrix = self.class_matrix(
                variant=number, context=context, fingerprint=mark
            )
            rows = variants.to(image_features.device) == number
            logits[rows] = self._class_scores(image_features[rows], matrix)
        return logits

    @torch.no_grad()
    def class_matrix(
        self,
        ids: Sequence[int] | None = None,
        *,
        variant: int | None = None,
        context: VariantContext | None = None,
        fingerprint: str | None = None,
    ) -> Tensor:
        """Class vectors: all templates of each class averaged, of length 1.

        They are kept until the weights of the text tower (or the fingerprint),
        the tokenizer, the precision, or names and templates change. New classes
        are encoded alone; in an evaluation, so are new groups of classes (those
        that arrived together), so that results do not depend on what was kept.

        :param ids: classes; default the running label space. Inside the
            evaluation of an experience the vectors of a variant are looked up
            once, so weights should not change there.
        :param variant: key of a form of the text tower other than the model's
            own, an integer.
        :param context: see :meth:`variant_logits`.
        :param fingerprint: see :meth:`variant_logits`.
        :return: float32 ``(C, D)``, on the strategy's device.
        """
        running = ids is None and not self.is_training
        chosen = (
            self.label_ids
            if ids is None
            else tuple(as_integer(i, "A class id") for i in ids)
        )
        if running and variant in self._eval_matrices:
            return self._eval_matrices[variant]
        groups = self._evaluation_groups() if running else [chosen]
        tokenizer = self._model_tokenizer()
        if tokenizer is not self._tokenizer:
            self._matrices.forget()
            self._tokenizer = tokenizer
        mark = fingerprint or tower_fingerprint(self.model, "text")
        size = getattr(tokenizer, "vocab_size", None)
        state = f"{mark}|{size}|{self.precision}|{self.device}"
        manager = nullcontext() if context is None else context(variant)  # type: ignore[arg-type]
        with manager, evaluating(self.model):
            vectors = self._matrices.get(
                [[self._key(i) for i in group] for group in groups],
                self._encode_prompts,
                variant=variant,
                fingerprint=state,
                reuse=not running,
            )
        order = {i: row for row, i in enumerate(i for g in groups for i in g)}
        matrix = vectors[[order[i] for i in chosen]]
        if running:
            self._eval_matrices[variant] = matrix
        return matrix

    def _encode_prompts(self, texts: list[str]) -> Tensor:
        tokens = self._model_tokenizer()(texts).to(self.device)
        encode: Any = self.model.encode_text
        with self.autocast():
            return encode(tokens)
