"""Contrastive training of image-text pairs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.items import item_fields
from avalanche_clip.common.checks import require_choice
from avalanche_clip.losses import contrastive_loss, siglip_loss
from avalanche_clip.models.encoders.output import CLIPOutput, class_scores
from avalanche_clip.training.templates.clip_template import CLIPTemplate

POSITIVES = ("diagonal", "targets")


class ContrastiveCriterion(nn.Module):
    """The loss of a batch of pairs, from the model's output.

    CLIP's symmetric cross-entropy, or SigLIP's sigmoid loss when the model has
    a logit bias. Stock Avalanche plugins call it with the bare model output
    and raw ids.

    :param positives: ``"diagonal"``: pair ``i`` is the only positive of row
        ``i``; ``"targets"``: pairs with equal ids are positives of each other.
    :raises ValueError: for another value.
    """

    def __init__(self, positives: str = "diagonal"):
        super().__init__()
        require_choice("positives", positives, POSITIVES)
        self.positives = positives

    def forward(
        self,
        output: CLIPOutput,
        targets: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Compute the loss.

        :param output: features ``(B, D)`` of both sides.
        :param targets: ids ``(B,)``, used with ``positives="targets"``.
        :param rows: the share of these rows, see :func:`contrastive_loss`.
        :return: a scalar.
        """
        ids = targets if self.positives == "targets" else None
        bias = (output.aux or {}).get("logit_bias")
        if bias is not None:
            return siglip_loss(
                output.image_features,
                output.text_features,
                output.logit_scale,
                bias,
                targets=ids,
                rows=rows,
            )
        return contrastive_loss(
            output.image_features,
            output.text_features,
            output.logit_scale,
            targets=ids,
            rows=rows,
        )


class ContrastiveTemplate(CLIPTemplate):
    """Train a CLIP-like model on experiences of image-text pairs.

    ``mb_output`` is the matrix of in-batch logits ``(B, B)``, image rows
    against first captions, and ``mb_y`` is ``arange(B)``, so stock metrics and
    plugins see in-batch retrieval as classification. ``mb_features`` holds the
    model's output, ``global_features`` that of all processes, ``mb_targets``
    the ids of the batch.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param positives: see :class:`ContrastiveCriterion`; without targets in the
        data, sample ids take their place, with a warning. Not with a ``criterion``.
    :param criterion: replaces :class:`ContrastiveCriterion`. Of several processes each
        calls it with the whole batch; without it each computes the rows of its own
        pairs only.
    :param kwargs: see :class:`CLIPTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        positives: str = "diagonal",
        criterion: Any = None,
        **kwargs: Any,
    ):
        self.positives = positives
        plain = ContrastiveCriterion(positives)
        if criterion is not None and positives != "diagonal":
            raise ValueError(
                f"positives={positives!r} is of ContrastiveCriterion, which your "
                "criterion replaces; leave it out, the criterion gets the targets."
            )
        super().__init__(
            model=model,
            criterion=plain if criterion is None else criterion,
            **kwargs,
        )

    @property
    def mb_y(self) -> Tensor:
        """Column of each image's own caption: ``arange(B)``."""
        return torch.arange(len(self.mb_x), device=self.device)

    def _column_classes(self) -> Tensor:
        return self.mb_targets

    def _output(self, output: CLIPOutput) -> Tensor:
        first = self._first_captions(output)
        return class_scores(first, first.image_features, first.text_features)

    def _first_captions(self, output: CLIPOutput) -> CLIPOutput:
        size = len(output.image_features)
        if len(output.text_features) == size:
            return output
        owner = self.mb_x["owner"]
        rows = torch.full((size,), len(owner), device=owner.device)
        positions = torch.arange(len(owner), device=owner.device)
        rows = rows.scatter_reduce(0, owner, positions, "amin")
        return output._replace(text_features=output.text_features[rows])

    def gather_output(self, output: CLIPOutput) -> CLIPOutput:
        """Join the outputs of all processes to that of the whole batch."""
        images, texts = self.batch_sizes, self.text_counts
        if images != texts:  # the same on each process
            raise ValueError(
                f"Training needs one caption per image, but the batch has {sum(texts)} "
                f"captions for {sum(images)} images; set train_text_transform in "
                "prepare_benchmark (RandomCaption)."
            )
        return super().gather_output(output)

    def criterion(self) -> Tensor:
        """Loss of the global batch (training) or the local one (evaluation)."""
        if self.is_training:
            assert self.global_features is not None
            targets = self.gather_rows(self.mb_targets)
            features, loss = self.global_features, self._criterion
            if (
                type(loss) is not ContrastiveCriterion
                or not distributed.is_distributed()
            ):
                return loss(features, targets)
            own = distributed.own_rows(self.batch_sizes)
            return distributed.sum_of_shares(loss(features, targets, own))
        assert self.mb_features is not None
        output = self._first_captions(self.mb_features)
        return self._criterion(output, self.mb_targets)

    def check_pool(self, dataset: Any) -> None:
        """Raise for a single pair; warn of what makes the loss trivial."""
        super().check_pool(dataset)
        if len(dataset) == 1:
            raise ValueError(
                f"Experience {self.experience_index} has one training pair: a "
                "contrastive loss needs at least two. Merge it with a neighbouring "
                "time step, or use replay."
            )
        if self.positives == "targets" and "targets" not in item_fields(dataset):
            warnings.warn(
                "positives='targets', but the data have no targets: only a sample "
                "with itself is a positive. Give targets to make_image_text_dataset, "
                "or use positives='diagonal'.",
                stacklevel=2,
            )
        if self.train_mb_size == 1 and distributed.world_size() == 1:
            warnings.warn(
                "train_mb_size=1: the contrastive loss of a single pair is zero; use "
                "larger batches.",
                stacklevel=2,
            )
