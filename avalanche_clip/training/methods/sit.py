"""SIT: online learning of branches, images against the texts of their batch alone.

Source: Wang et al., "CLIP model is an Efficient Online Lifelong Learner", 2024 (SIT,
arXiv 2405.15155), and the authors' released code. That code has the softmax applied
twice, the optimiser made anew at each task, one random augmentation for all images of
a batch, and the mean and deviation of the data set in place of CLIP's. The first two
are switches here, off by default. Transforms are those of :func:`prepare_benchmark`,
which draws them for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.models.peft.adapter import attach_adapters
from avalanche_clip.models.peft.branch import require_flags
from avalanche_clip.models.peft.lora import INITS
from avalanche_clip.training.methods.lora import LoRAPlugin
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.class_name import ClassNameTemplate

VISIBLE = {"batch": "batch", "all": "seen"}
"""What images are compared with in training -> label space."""
TUNING = ("lora", "adapters")
DECAY = 1e-5
SIT_UPDATES: dict[str, Any] = {"rank": 4, "alpha": 1.0, "targets": ("qkv", "out")}
"""Options of :func:`attach_lora`: one A for query, key and value, scaling 0.25."""


class DoubleSoftmaxLoss(nn.Module):
    """Cross-entropy of probabilities that are taken for logits, as in SIT's code.

    With K classes its value lies between ``log(1 + (K - 1) / e)`` and
    ``log(K - 1 + e)``, so that it has gradients for images that are certain, too.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.2, 1.6]])
    >>> round(DoubleSoftmaxLoss()(logits, torch.tensor([0, 1, 0])).item(), 6)
    0.52101
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits ``(B, K)`` and columns ``(B,)``."""
        return functional.cross_entropy(logits.softmax(dim=-1), targets)


class SharedAdaptersPlugin(LoRAPlugin, supports_distributed=True):
    """Attach bottleneck adapters, one per block for both halves; train them alone.

    :param options: of :func:`attach_adapters`.
    :raises ValueError: as :class:`LoRAPlugin`.
    """

    kind = "adapters"
    attach = staticmethod(attach_adapters)


def sit_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of SIT's scripts."""
    return torch.optim.AdamW(groups, lr=5e-4, weight_decay=DECAY)


def sit_groups(named_parameters: optim.Named) -> list[dict[str, Any]]:
    """One group with weight decay, biases included, as in SIT's code."""
    (group,) = optim.one_group(named_parameters)
    return [{**group, "weight_decay": DECAY}]


class SIT(ClassNameTemplate):
    """Train branches on a stream of batches, each against the texts of its own classes.

    An asymmetric loss compares a batch with the texts of all classes seen so far
    (``visible="all"``): those without an image in the batch are pushed away from it.
    With ``visible="batch"`` each text has an image, and other texts are not encoded.
    A batch of one class then has no loss.

    For streams of :func:`split_online`, whose experiences are single batches: the
    number of classes is not known, nor where a task ends; each batch is trained on
    ``repeats`` times in a row, with augmentations of its own, and does not come again.
    Experiences of several batches are trained in the same way, in one pass. At any
    time images are classified among the classes seen. :func:`run_stream` evaluates by
    samples consumed with ``evaluate_at={"samples": 1000}``.

    :param model: a :class:`~avalanche_clip.models.DualEncoder` with residual attention
        blocks in the towers that are tuned. It is frozen.
    :param visible: ``"batch"`` (SIT) or ``"all"`` (its asymmetric counterpart; an
        experience that is not cut into batches shows all of its classes at once).
    :param tuning: ``"lora"`` (rank 4, scaling 0.25, of query, key and value together
        and of the output) or ``"adapters"`` (bottleneck 64, shared by both halves of
        a block, factor and dropout 0.1).
    :param tower: ``"both"``, ``"image"`` (best for the stream in the paper) or
        ``"text"`` (best for other data sets).
    :param lora_init: ``"zero_b"``: features are those of the model at first; or
        ``"xavier"``: they differ, as in the code.
    :param double_softmax: use :class:`DoubleSoftmaxLoss`, as the code does.
    :param repeats: steps on each batch.
    :param reset_optimizer: forget moments at the borders of tasks, as the code does.
        Streams of :func:`split_online` hide these borders from the method; this
        switch makes use of them all the same.
    :param train_mb_size: images per step and process.
    :param plugins: further plugins.
    :param kwargs: see :class:`ClassNameTemplate`; without ``optimizer`` AdamW at 5e-4
        with weight decay 1e-5, constant. The smaller rest of an experience is not left
        out, unless ``train`` is told ``drop_last=True``.
    :raises ValueError: for an unknown choice; ``lora_init`` with adapters; a plugin
        that :class:`LoRAPlugin` does not go with, or whose loader repeats no batch.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> strategy = SIT(model=model, tower="image", evaluator=None)
    >>> strategy.label_space, strategy.eval_label_space, model.lora.num_trainable
    ('batch', 'seen', 12288)
    """

    _default_optimizer = staticmethod(sit_optimizer)
    _default_groups: optim.GroupRule | None = staticmethod(sit_groups)
    own_defaults = {"eval_label_space": "seen"}
    sets = ("label_space", "criterion", "reset_optimizer_state")

    def __init__(
        self,
        *,
        model: nn.Module,
        visible: str = "batch",
        tuning: str = "lora",
        tower: str = "both",
        lora_init: str = "zero_b",
        double_softmax: bool = False,
        repeats: int = 3,
        reset_optimizer: bool = False,
        train_mb_size: int = 64,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        require_choice("visible", visible, tuple(VISIBLE))
        require_choice("tuning", tuning, TUNING)
        require_choice("lora_init", lora_init, INITS)
        require_flags(double_softmax=double_softmax, reset_optimizer=reset_optimizer)
        if tuning != "lora" and lora_init != "zero_b":
            raise ValueError(
                f"lora_init={lora_init!r} is of low-rank updates, but tuning={tuning!r}"
                "; leave it out."
            )
        own = {"label_space": "visible", "criterion": "double_softmax"}
        own["reset_optimizer_state"] = "reset_optimizer"
        for name in own.keys() & kwargs.keys():
            raise ValueError(f"SIT sets {name} itself; use {own[name]}.")
        self.visible, self.tuning, self.tower = visible, tuning, tower
        self.lora_init, self.double_softmax = lora_init, double_softmax
        self.repeats = as_size(repeats, "repeats")
        self.reset_optimizer = reset_optimizer
        updates = {"tower": tower, "init": lora_init, **SIT_UPDATES}
        self.branches = LoRAPlugin(**updates)
        if tuning != "lora":
            self.branches = SharedAdaptersPlugin(tower=tower)
        super().__init__(
            model=model,
            label_space=VISIBLE[visible],
            criterion=DoubleSoftmaxLoss() if double_softmax else None,
            train_mb_size=train_mb_size,
            reset_optimizer_state=False,
            plugins=[*(plugins or ()), self.branches],
            **{"eval_label_space": "seen", **kwargs},
        )

    def make_train_dataloader(
        self, shuffle: bool = True, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Build the loader; the rest of an experience is a batch of its own."""
        super().make_train_dataloader(shuffle=shuffle, drop_last=drop_last, **kwargs)

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool | None = None, **kwargs: Any
    ) -> None:
        """Adapt the optimiser; at the border of a task forget moments, if asked to."""
        if reset_optimizer_state is None and self.reset_optimizer:
            shown = self.experience.logging()
            # Only an online stream cuts a task into experiences.
            reset_optimizer_state = getattr(shown, "is_first_subexp", True)
        super().check_model_and_optimizer(reset_optimizer_state, **kwargs)
