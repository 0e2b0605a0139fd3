"""Continual-CLIP: the pretrained model as it is; new classes are new texts.

Source: Thengane et al., "CLIP model is an Efficient Continual Learner", 2022
(Continual-CLIP, arXiv 2210.03114), and the authors' released code.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.common.checks import require_choice
from avalanche_clip.models.peft.branch import set_trainable
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.label_spaces import (
    EVAL_LABEL_SPACES,
    experience_ids,
)

TAKEN = (
    "class_prompts eval_mb_size text_batch_size device plugins evaluator precision seed"
).split()
"""Arguments that mean something without a training."""


def empty_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """An optimiser of no parameter."""
    return torch.optim.SGD(groups, lr=0.0)


class ContinualCLIP(ClassNameTemplate):
    """Train nothing: note the classes of each experience, classify among their names.

    ``train`` makes no step and reads no image: no weight changes, the cost is zero.
    It moves the clock and fires the hooks of experiences, so that a run has a row per
    step. Class vectors are kept; a new class costs the encoding of its prompts.

    Accuracy falls only because candidates become more. The last accuracy depends on
    weights, names and test images alone, not on the order of classes or their steps.
    The templates of the paper are ``"a bad photo of a {}."`` for CIFAR-100 and
    TinyImageNet, and ``"a good photo of a {}."`` for ImageNet and CORe50.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`. It is frozen, and put
        into evaluation mode when it is evaluated.
    :param eval_label_space: ``"seen"`` (class-incremental), ``"all"`` (task-agnostic,
        and domain-incremental) or ``"own"``; see :class:`ClassNameTemplate`.
    :param kwargs: those of :class:`ClassNameTemplate` that are named in ``TAKEN``.
        Plugins may measure or write; those with a state have nothing to learn here and
        are refused.
    :raises ValueError: for arguments of a training, and for plugins with a state.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji")
    >>> strategy = ContinualCLIP(model=model, evaluator=None)
    >>> any(parameter.requires_grad for parameter in model.parameters())
    False
    """

    training_free = True
    _default_optimizer = staticmethod(empty_optimizer)
    sets = sorted(inspect.signature(ClassNameTemplate).parameters.keys() - TAKEN)

    def __init__(
        self, *, model: nn.Module, eval_label_space: str = "seen", **kwargs: Any
    ):
        if without := sorted(kwargs.keys() - TAKEN):
            raise ValueError(
                f"ContinualCLIP trains nothing: {without} would have no effect; leave "
                f"them out. It takes model, eval_label_space, {', '.join(TAKEN)}."
            )
        require_choice("eval_label_space", eval_label_space, EVAL_LABEL_SPACES)
        set_trainable(model, False)
        kwargs["eval_label_space"] = eval_label_space
        super().__init__(model=model, label_space="seen", **kwargs)

    def check_setup(self) -> None:
        """Also refuse plugins that would learn or act in training steps."""
        for contract in self.contracts:
            plugin = contract.wrapped
            fits = contract.stateless or isinstance(plugin, EvaluationPlugin)
            if not (fits or plugin is self.spaces.seen):
                raise ValueError(
                    f"{type(plugin).__name__} keeps what it learns in training, but "
                    "ContinualCLIP trains nothing; use ClassNameTemplate, or leave it "
                    "out."
                )
        super().check_setup()

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool | None = None, **kwargs: Any
    ) -> None:
        """Leave the model as it is."""

    def make_train_dataloader(
        self, shuffle: bool = False, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Read nothing."""
        self.dataloader = ()

    def _train_exp(
        self, experience: Any, eval_streams: Any = None, **kwargs: Any
    ) -> None:
        self._pending = None
        for number in experience_ids(self.experience):
            self.class_prompts.row(number)  # a class without a name is refused here
        distributed.exchange(f"the end of experience {self.experience_index}")
