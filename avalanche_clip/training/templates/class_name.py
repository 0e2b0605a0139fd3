"""Training of images against the prompts of class names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.items import item_fields
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.evaluation.metrics import RetrievalMetric
from avalanche_clip.models.encoders.output import CLIPOutput, class_scores
from avalanche_clip.training.templates.class_scoring import (
    ClassScorer,
    PromptBatch,
    counted_texts,
    without_filler,
)
from avalanche_clip.training.templates.clip_template import (
    CLIPTemplate,
    printing_evaluator,
)
from avalanche_clip.training.templates.compatibility import taken_off_on_error
from avalanche_clip.training.templates.contract import defines
from avalanche_clip.training.templates.label_spaces import (
    EVAL_LABEL_SPACES,
    LABEL_SPACES,
    LabelSpaces,
    experience_ids,
    is_class_incremental,
)


def default_class_evaluator() -> EvaluationPlugin:
    """Accuracy and loss metrics, printed by the main process."""
    return printing_evaluator(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
    )


class ClassNameTemplate(CLIPTemplate):
    """Train a CLIP-like model to tell images apart by the names of their classes.

    Data are those of :func:`multi_domain_benchmark`,
    :func:`class_incremental_benchmark`, or any image-text data whose
    ``targets`` are class ids. In training the batch's texts are replaced by one
    prompt per class of the label space, from the first template, so that one
    call of the model encodes both; in evaluation classes are the normalised
    means of all their templates, encoded once per state of the model.

    ``mb_output`` holds the logits ``(B, C)``, one column per class of the label
    space in ascending global id; ``mb_y`` is the column of each image and
    ``mb_targets`` its global id; ``mb_classes`` holds the ids of the columns.
    ``mb_features`` and ``global_features`` have ``C`` text features.

    With several processes each encodes its images and all prompts; the loss is
    that of all images, the same on each. With ``accumulation_steps`` images and
    prompts are shared out over the parts. Classes with equal names and
    templates have equal logits in evaluation, where ties go to the lowest id.

    A plugin may define ``class_logits(strategy, image_features)``, which
    returns the logits of an evaluation batch or None (see
    :meth:`variant_logits`); the images of the batch are encoded with what it chooses
    in ``route_batch``. One that defines ``class_loss(strategy)`` replaces the
    cross-entropy of training.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param label_space: columns in training: ``"current"``, the classes of the
        experience and of replayed samples; ``"own"``, those of the experience
        alone; ``"seen"``, also those of earlier experiences; ``"all"``, all that
        have a prompt; ``"batch"``, those of the mini-batch over all processes,
        replayed samples included: other texts are not even encoded.
    :param eval_label_space: columns in evaluation, by default the same (with
        ``"batch"``: ``"seen"``):
        ``"own"`` or ``"current"``, the classes of the evaluated experience;
        ``"seen"``, these and all that were trained on, the usual choice for
        class-incremental streams; ``"open"``, as ``"seen"`` if all classes of the
        evaluated experience were trained on, else as ``"own"`` (open-domain
        streams); ``"all"``. An experience without ``class_ids`` has the classes of
        the domains that occur in it; one with an attribute ``eval_label_space`` (a
        zero-shot test) is evaluated in that one.
    :param class_prompts: default those of the benchmark, or of the experience
        where the benchmark's do not name its classes.
    :param label_smoothing: share of the loss that all classes get, in [0, 1); not
        with a ``criterion``.
    :param text_batch_size: prompts per call of the text tower in evaluation.
    :param criterion: replaces the cross-entropy; called with logits and columns.
    :param kwargs: see :class:`CLIPTemplate`.
    :raises ValueError: for an unknown label space, a smoothing outside its
        range, retrieval metrics, a plugin that needs pairs, or a budget in MACs with
        the label space ``"batch"``, whose cost is not known in advance.
    """

    reads_captions = False

    def __init__(
        self,
        *,
        model: nn.Module,
        label_space: str = "current",
        eval_label_space: str | None = None,
        class_prompts: ClassPrompts | None = None,
        label_smoothing: float = 0.0,
        text_batch_size: int = 256,
        criterion: Any = None,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_class_evaluator,
        **kwargs: Any,
    ):
        require_choice("label_space", label_space, LABEL_SPACES)
        if eval_label_space is not None:
            require_choice("eval_label_space", eval_label_space, EVAL_LABEL_SPACES)
        if label_space == "batch" and kwargs.get("budget_macs") is not None:
            raise ValueError(
                "budget_macs needs the number of prompts per step, which "
                "label_space='batch' shows with each batch only; give budget_iterations"
                " or budget_samples."
            )
        as_finite(label_smoothing, "label_smoothing", low=0, below=1)
        if criterion is not None and label_smoothing:
            raise ValueError(
                f"label_smoothing={label_smoothing} is of the cross-entropy, which "
                "your criterion replaces; give it to the criterion."
            )
        text_batch_size = as_size(text_batch_size, "text_batch_size")
        self.label_space = label_space
        same = "seen" if label_space == "batch" else label_space
        self.eval_label_space: str = eval_label_space or same
        self._warned_of_space = False
        self.label_smoothing = float(label_smoothing)
        self.changed_loss = ""
        """What was given that changes the cross-entropy."""
        if criterion is not None:
            self.changed_loss = "A criterion"
        elif label_smoothing:
            self.changed_loss = f"label_smoothing={label_smoothing}"
        plain = nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)
        self.loss_function = plain if criterion is None else criterion
        self.given_prompts = class_prompts
        self.spaces = LabelSpaces(self)
        self.scorer = ClassScorer(self, self.spaces, text_batch_size)
        super().__init__(
            model=model,
            criterion=self._loss_of,
            plugins=[*(plugins or ()), self.spaces.seen],
            evaluator=evaluator,
            **kwargs,
        )

    # ----------------------------------------------------------- label spaces
    @property
    def class_prompts(self) -> ClassPrompts:
        """Names and templates in use, see :attr:`LabelSpaces.prompts`."""
        return self.spaces.prompts

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Ids of the classes trained so far, in order of arrival."""
        return self.spaces.seen.ids

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Global ids of the columns of ``mb_output``, ascending."""
        return self.spaces.ids

    @property
    def mb_classes(self) -> Tensor:
        """Global ids of the columns of ``mb_output``, int64 ``(C,)``."""
        return self.spaces.classes

    @property
    def mb_y(self) -> Tensor:
        """Column of each image's class, int64 ``(B,)``."""
        return torch.searchsorted(self.mb_classes, self.mb_targets)

    def variant_logits(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits for forms of the text tower, :meth:`ClassScorer.variant_logits`."""
        return self.scorer.variant_logits(*args, **kwargs)

    def class_matrix(self, *args: Any, **kwargs: Any) -> Tensor:
        """Class vectors, see :meth:`ClassScorer.class_matrix`."""
        return self.scorer.class_matrix(*args, **kwargs)

    def logits_among(self, space: str) -> tuple[Tensor, Tensor]:
        """Logits of the evaluation batch among the classes of any label space.

        :param space: ``"own"``, ``"seen"``, ``"open"`` or ``"all"``.
        :return: ``(B, C)``, and the global ids of the columns, int64 ``(C,)``.
        """
        require_choice("space", space, EVAL_LABEL_SPACES)
        return self.scorer.logits_among(space)

    def _forget_spaces(self) -> None:
        """Drop what was derived from the running experience, and holds its data."""
        self.spaces.forget()
        self.scorer.forget()

    def check_setup(self) -> None:
        """Also refuse plugins that both score classes, and retrieval metrics."""
        with taken_off_on_error(self.model):
            super().check_setup()
            _check_combination(self)

    def _column_classes(self) -> Tensor:
        return self.mb_classes

    # -------------------------------------------------------------- training
    def _before_training_exp(self, **kwargs: Any) -> None:
        self._forget_spaces()
        self.spaces.batch_ids = None
        self.spaces.seen.add(experience_ids(self.experience))
        super()._before_training_exp(**kwargs)

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._forget_spaces()
        self.spaces.batch_ids = None

    def check_pool(self, dataset: Any) -> None:
        """Raise without classes; warn of a single one."""
        super().check_pool(dataset)
        if "targets" not in item_fields(dataset):
            raise ValueError(
                "The data have no targets: ClassNameTemplate needs the class of each "
                "image. Give targets to make_image_text_dataset, or use "
                "multi_domain_benchmark or class_incremental_benchmark."
            )
        if self.label_space != "batch" and len(self.label_ids) < 2:
            warnings.warn(
                f"Experience {self.experience_index} has one class only: its loss is "
                "zero. Use label_space='seen' or larger steps.",
                stacklevel=2,
            )

    def _unpack_minibatch(self) -> None:
        assert self.mbatch is not None
        self.check_ids(self.mbatch[1])
        super()._unpack_minibatch()
        if self.is_training:
            images = self.mbatch[0].items()
            self.mbatch[0] = PromptBatch(
                (k, v) for k, v in images if k not in ("text", "owner")
            )
            self._set_prompts()

    def _set_prompts(self) -> None:
        """Put the prompts of the label space beside the images of the batch."""
        if self.label_space == "batch":
            self.spaces.choose(self.mb_targets)
        self.mbatch[0]["text"] = self.scorer.prompt_tokens()

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        if self.is_training and self.label_space == "batch":
            self._set_prompts()  # a plugin may have added samples

    def check_ids(self, targets: Tensor) -> None:
        """Raise for a class outside the running label space.

        :param targets: global ids.
        :raises ValueError: naming the class and the label space.
        """
        if self.is_training and self.label_space == "batch":
            return  # which has the classes of whatever comes
        ids = np.asarray(self.label_ids)
        wrong = np.setdiff1d(targets.cpu().numpy(), ids)
        if wrong.size:
            name, space = "label_space", self.label_space
            if not self.is_training:
                name, space = "eval_label_space", self.spaces.evaluated
            raise ValueError(
                f"A batch holds class {int(wrong[0])}, which is not in the label space "
                f"of {len(ids)} classes ({name}={space!r}) of experience "
                f"{self.experience_index}. Use 'current' or 'seen' with replay, or "
                "'all'."
            )

    def encode(self, batch: Any, *, synced: bool = False) -> CLIPOutput:
        """Encode a batch; texts that only fill up a chunk do not count."""
        with counted_texts(self.model, batch):
            return without_filler(super().encode(batch, synced=synced), batch)

    def gather_output(self, output: CLIPOutput) -> CLIPOutput:
        """Join the images of all processes; the texts are the same on each."""
        return distributed.gather_output(output, self.batch_sizes, texts=False)

    def macs_per_sample(self, batch_size: int) -> float:
        """Forward MACs of one training sample with its share of the prompts."""
        macs: Any = self.model.macs()  # type: ignore[operator]
        world = distributed.world_size()
        prompts = len(self.label_ids) * world / batch_size
        return float(macs["image"] + macs["text"] * prompts)

    # ------------------------------------------------------------ evaluation
    def _before_eval_exp(self, **kwargs: Any) -> None:
        self._forget_spaces()
        self._check_eval_space()
        super()._before_eval_exp(**kwargs)

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()  # also after an evaluation that failed
        self._forget_spaces()

    def _check_eval_space(self) -> None:
        own = self.eval_label_space in ("own", "current")
        if self._warned_of_space or not own:
            return
        if is_class_incremental(self.experience):
            self._warned_of_space = True
            warnings.warn(
                f"eval_label_space={self.eval_label_space!r} classifies the images of "
                "each step among the classes of that step alone, which is easier than "
                "the class-incremental protocol. Use eval_label_space='seen'; until "
                "then there are no incremental summaries.",
                stacklevel=2,
            )

    # ------------------------------------------------------- forward and loss
    def forward(self) -> Tensor:
        """Logits of the batch, one column per class of the label space."""
        if self.is_training:
            return super().forward()
        self.step.forget()
        self.count_evaluated(len(self.mb_x), 0)
        return self.scorer.evaluate_batch()

    def _output(self, output: CLIPOutput) -> Tensor:
        return class_scores(output, output.image_features, output.text_features)

    def criterion(self) -> Tensor:
        """Loss of the global batch (training) or the local one (evaluation)."""
        assert self.mb_output is not None
        if not self.is_training:
            return self.loss_function(self.mb_output, self.mb_y)
        for contract in self.contracts:
            loss = contract.class_loss(self)
            if loss is not None:
                return loss
        logits = self.gather_rows(self.mb_output)
        return self.loss_function(logits, self.gather_rows(self.mb_y))

    def _loss_of(self, output: Any, targets: Tensor) -> Tensor:
        """Loss of logits and columns, or of a model's output and global ids.

        Stock plugins (EWC, A-GEM) call it with what the model returns for a
        batch of the data. Its texts are not the label space: the prompts are
        encoded anew, with gradients. Ids outside the running label space are
        told apart among all classes seen; with ``label_space="batch"`` among those
        of the given ids.
        """
        if not isinstance(output, CLIPOutput):
            return self.loss_function(output, targets)
        own = output is self.mb_features or output is self.global_features
        ids = self.label_ids if own else self.spaces.of(set(targets.tolist()))
        texts = output.text_features
        if not own:
            with self.autocast():
                encode: Any = self.model.encode_text
                texts = encode(self.scorer.tokenize(ids)).float()
        classes = torch.tensor(ids, device=targets.device)
        logits = class_scores(output, output.image_features, texts)
        return self.loss_function(logits, torch.searchsorted(classes, targets))


def _check_combination(strategy: ClassNameTemplate) -> None:
    for name in ("class_logits", "class_loss"):
        found = [c.wrapped for c in strategy.contracts if defines(c, name)]
        owners = [type(plugin).__name__ for plugin in found]
        if len(owners) > 1:
            raise ValueError(
                f"{owners} all define {name}; at most one plugin may decide how "
                "classes are scored."
            )
        if name == "class_loss" and owners and strategy.changed_loss:
            raise ValueError(
                f"{strategy.changed_loss} changes the cross-entropy, in whose place "
                f"{owners[0]} has a loss of its own; leave it out."
            )
    for metric in strategy.evaluator.metrics:
        if isinstance(metric, RetrievalMetric):
            raise ValueError(
                "retrieval_plugin_metrics needs captions of images, which class names "
                "are not; use accuracy_metrics(experience=True, stream=True)."
            )
