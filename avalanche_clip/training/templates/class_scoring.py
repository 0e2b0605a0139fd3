"""Prompts of a label space: beside images in training, as class vectors after it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.batch import ImageTextBatch
from avalanche_clip.common.checks import as_integer, require_array
from avalanche_clip.common.fingerprint import tower_fingerprint
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.models.encoders.output import (
    CLIPOutput,
    class_scores,
    model_output,
    unit_features,
)
from avalanche_clip.models.peft.attached import attachment
from avalanche_clip.training.templates.class_matrix import ClassKey, ClassMatrices
from avalanche_clip.training.templates.contract import routed
from avalanche_clip.training.templates.label_spaces import LabelSpaces

VariantContext = Callable[[int], AbstractContextManager[Any]]


class PromptBatch(ImageTextBatch):
    """Images with the prompts of a label space, which belong to no image.

    ``text`` holds one prompt per class, ``(C, L)``; there is no ``owner``.
    """

    prompts: int | None = None
    """How many of the texts count; the others fill up a part without any."""

    def split(self, chunks: int) -> list[ImageTextBatch]:
        """Cut images and prompts into consecutive, nearly equal parts.

        :param chunks: number of parts; at most one per image. A part without a
            prompt of its own gets the first one, which does not count.
        """
        images = ImageTextBatch((k, v) for k, v in self.items() if k != "text")
        text = self["text"]
        found = images.split(chunks)
        parts: list[ImageTextBatch] = []
        for number, images in enumerate(found):
            low = number * len(text) // len(found)
            high = (number + 1) * len(text) // len(found)
            part = PromptBatch(images)
            part["text"] = text[low:high] if high > low else text[:1]
            part.prompts = high - low
            parts.append(part)
        return parts


@contextmanager
def counted_texts(model: Any, batch: Any) -> Iterator[None]:
    """Keep texts that do not count out of the statistics of expert adapters.

    :param model: with ``model.moe_adapters``, or without.
    :param batch: to be encoded inside the context.
    """
    adapters = attachment(model, "moe_adapters")
    filler = adapters is not None and getattr(batch, "prompts", None) == 0
    with adapters.paused("text") if filler else nullcontext():
        yield


def without_filler(output: CLIPOutput, batch: Any) -> CLIPOutput:
    """Drop the texts of a part that do not count."""
    count = getattr(batch, "prompts", None)
    if count is None or count == len(output.text_features):
        return output
    aux = dict(output.aux or {})
    if "text_norm" in aux:
        aux["text_norm"] = aux["text_norm"][:count]
    return output._replace(text_features=output.text_features[:count], aux=aux or None)


class ClassScorer:
    """Logits of evaluation batches, and the class vectors that they need.

    :param strategy: whose model encodes.
    :param spaces: its label spaces.
    :param batch_size: prompts per call of the text tower in evaluation.
    """

    def __init__(self, strategy: Any, spaces: LabelSpaces, batch_size: int):
        self.strategy = strategy
        self.spaces = spaces
        self.matrices = ClassMatrices(batch_size)
        self._tokenizer: Any = None
        self.forget()

    def forget(self) -> None:
        """Drop what was looked up for the running experience."""
        self._looked_up: dict[Any, tuple[tuple[int, ...], Tensor]] = {}
        self._by_plugin = False
        self._tokens: tuple[Any, ...] | None = None

    def prompt_tokens(self) -> Tensor:
        """Tokens of one prompt per class of the label space, on the device."""
        ids, tokenizer = self.spaces.ids, self.strategy.model.tokenizer
        source = (tokenizer, getattr(tokenizer, "vocab_size", None))
        if (
            self._tokens is None
            or self._tokens[0] is not ids
            or (self._tokens[1:3] != source)
        ):
            self._tokens = (ids, *source, self.tokenize(ids))
        found: Tensor = self._tokens[3]
        return found

    def tokenize(self, ids: Sequence[int]) -> Tensor:
        """Tokens of the first prompt of classes, on the device."""
        tokens = self.strategy.model.tokenizer(self.spaces.prompts.prompts(ids))
        return tokens.to(self.strategy.device)  # type: ignore[no-any-return]

    def evaluate_batch(self) -> Tensor:
        """Logits of the evaluation batch; ``mb_features`` becomes what they are of."""
        strategy, model = self.strategy, self.strategy.model
        with routed(strategy, strategy.mb_x), strategy.autocast():
            raw = model.encode_image(strategy.mb_x["image"], normalize=False)
        features, norm = unit_features(raw.float())
        none = features.new_zeros(0, features.shape[1])
        output = model_output(model, features, none, image_norm=norm)
        return self._logits(output)

    def _logits(self, output: CLIPOutput) -> Tensor:
        strategy, features = self.strategy, output.image_features
        strategy.mb_features, self._by_plugin = output, True
        for contract in strategy.contracts:
            logits = contract.class_logits(strategy, features)
            if logits is not None:
                what = f"What {type(contract.wrapped).__name__}.class_logits() returned"
                shape = f"{len(features)} {len(self.spaces.ids)}"
                give = "one row per image and one column per class of the label space"
                require_array(logits, what, shape, "float", give=give)
                return logits
        matrix, self._by_plugin = self.class_matrix(), False
        strategy.mb_features = output._replace(text_features=matrix)
        return self._scores(features, matrix)

    def logits_among(self, space: str) -> tuple[Tensor, Tensor]:
        """See :meth:`ClassNameTemplate.logits_among`."""
        strategy, spaces = self.strategy, self.spaces
        ids, classes, logits = spaces.ids, spaces.classes, strategy.mb_output
        with spaces.evaluated_in(space):
            wanted = spaces.ids
            if wanted == ids:
                return logits, classes
            # A plugin's scores may depend on what competes.
            if not self._by_plugin and set(wanted) <= set(ids):
                return logits[:, torch.searchsorted(classes, spaces.classes)], (
                    spaces.classes
                )
            kept = strategy.mb_features
            try:
                return self._logits(kept), spaces.classes
            finally:
                strategy.mb_features = kept

    def _scores(self, images: Tensor, matrix: Tensor) -> Tensor:
        """Logits of images; classes with equal prompts get equal ones."""
        output, equal = self.strategy.mb_features, self.spaces.equal
        if equal is None:
            return class_scores(output, images, matrix)
        first, inverse = equal
        return class_scores(output, images, matrix[first])[:, inverse]

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
        width = len(self.spaces.ids)
        logits = image_features.new_empty(len(image_features), width)
        for number in torch.unique(variants).tolist():
            mark = None if fingerprint is None else fingerprint(number)
            matrix = self.class_matrix(
                variant=number, context=context, fingerprint=mark
            )
            rows = variants.to(image_features.device) == number
            logits[rows] = self._scores(image_features[rows], matrix)
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
        strategy, spaces = self.strategy, self.spaces
        running = ids is None and not strategy.is_training
        place = spaces.asked, variant
        if ids is None:
            chosen = spaces.ids
        else:
            chosen = tuple(as_integer(i, "A class id") for i in ids)
        if running and place in self._looked_up:
            known, found = self._looked_up[place]
            if known is chosen:
                return found
        groups = spaces.groups() if running else [chosen]
        manager = nullcontext() if context is None else context(variant)  # type: ignore[arg-type]
        with manager:
            vectors = self.vectors(
                [[spaces.key(i) for i in group] for group in groups],
                variant=variant,
                fingerprint=fingerprint,
                reuse=not running,
            )
        order = {i: row for row, i in enumerate(i for g in groups for i in g)}
        matrix = vectors[[order[i] for i in chosen]]
        if running:
            self._looked_up[place] = chosen, matrix
        return matrix

    @torch.no_grad()
    def vectors(
        self,
        groups: Sequence[Sequence[ClassKey]],
        *,
        variant: Hashable = None,
        fingerprint: str | None = None,
        reuse: bool = False,
    ) -> Tensor:
        """Class vectors of names with templates; see :meth:`ClassMatrices.get`.

        :param groups: keys of the classes, as they arrived.
        :param variant: under which they are kept.
        :param fingerprint: of all that the text features depend on; default: of the
            whole text tower.
        :param reuse: see :meth:`ClassMatrices.get`.
        :return: float32 ``(C, D)`` in the order of the groups.
        """
        strategy, tokenizer = self.strategy, self.strategy.model.tokenizer
        if tokenizer is not self._tokenizer:
            self.matrices.forget()
            self._tokenizer = tokenizer
        mark = fingerprint or tower_fingerprint(strategy.model, "text")
        size = getattr(tokenizer, "vocab_size", None)
        with evaluating(strategy.model):
            return self.matrices.get(
                groups,
                self._encode,
                variant=variant,
                fingerprint=f"{mark}|{size}|{strategy.precision}|{strategy.device}",
                reuse=reuse,
            )

    def _encode(self, texts: list[str]) -> Tensor:
        strategy = self.strategy
        tokens = strategy.model.tokenizer(texts).to(strategy.device)
        if strategy.in_training and strategy.is_training:
            count = len(texts) * distributed.world_size()
            strategy.compute.spend("teacher", images=0, texts=count)
        else:
            strategy.count_evaluated(0, len(texts))
        with strategy.autocast():
            return strategy.model.encode_text(tokens)  # type: ignore[no-any-return]
