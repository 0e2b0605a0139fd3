"""LoRA: train low-rank updates of the weights, and merge them after each step or not.

Source: Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685): frozen weights, updates of
queries and values, and the values of their GPT-2 runs (rank 4, alpha 32, AdamW at 2e-4
with weight decay 0.01). Merging after each step, in part, is that of Liu et al., ICLR
2025 (C-CLIP), equation 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite, require_type
from avalanche_clip.common.randomness import named_seed, seeded
from avalanche_clip.models.peft.attached import BranchSet, attachment
from avalanche_clip.models.peft.lora import attach_lora
from avalanche_clip.training.methods.tic import Sequential
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.options import require_options

TARGETS = ("q", "v")


class LoRAPlugin(MethodPlugin, supports_distributed=True):
    """Attach low-rank updates to the model, which alone are trained.

    Everything else is frozen for good, the logit scale too. Without ``merge`` the
    updates go on from experience to experience. With it they are added to their weights
    at the end of each one, and the next begins with fresh ones, whose product is zero
    and which have no moments: between experiences the model is a plain one, to be saved
    and evaluated as it is, and weights change by merging alone. That comes after what
    all other plugins do at the end of an experience (averaging), but before
    :class:`PatchingPlugin` mixes the weights.

    Memory: the updates; with ``merge`` the weights they belong to are part of each
    checkpoint. Time: a product of two thin matrices per weight and pass.

    :param merge: whether updates are merged after each experience.
    :param share: of the updates that is merged, in ``(0, 1]``; with less than 1 the
        deployed model lies between that before the experience and the trained one.
    :param options: of :func:`attach_lora`: ``tower``, ``blocks``, ``rank``, ``alpha``,
        ``targets``.
    :raises ValueError: for a value outside its range, or a share of nothing; for a
        model that has updates already, or a tower without residual attention blocks;
        together with plugins that route batches, change the token table or begin each
        step anew; with ``merge`` also with those that protect weights by name
        (EWC), begin a step from other weights, or mix in the initial ones.

    Initial values of updates depend on the seed of the run and the number of merges.
    """

    keeps_per_weight_state = False
    only_one = True
    closes_last = True
    state_attributes = ("merged",)
    kind = "lora"
    """Attribute of the model that holds what is attached."""
    attach: Callable[..., BranchSet] = staticmethod(attach_lora)

    def __init__(self, merge: bool = False, *, share: float = 1.0, **options: Any):
        super().__init__()
        require_type(merge, bool, "merge", "True or False", error=ValueError)
        self.merge = merge
        self.share = as_finite(share, "share", above=0, high=1)
        if self.share < 1 and not merge:
            raise ValueError(
                f"share={share} is that of merged updates, but merge=False; give "
                "merge=True, or leave it out."
            )
        taken = ("model",)
        self.options = require_options("LoRAPlugin", options, self.attach, taken)
        self.merged = 0
        """Experiences whose updates have been merged."""
        self._updates: BranchSet | None = None

    @property
    def excludes(self) -> dict[str, str]:  # type: ignore[override]
        """Roles that do not go with frozen weights, or with merged updates."""
        found = {
            "routes_batches": (
                "trains one update for all samples, but {} routes batches through "
                "parts of their own"
            ),
            "changes_text_table": "freezes the token table, which {} changes",
            "starts_fresh": "goes on from step to step, but {} begins each one anew",
        }
        if self.merge:
            found |= {
                "protects_weights": (
                    "merges what it has trained and begins anew, so that {} would "
                    "protect nothing"
                ),
                "starts_elsewhere": (
                    "continues from the merged weights, but {} starts each step from "
                    "others"
                ),
            }
        return found

    # -------------------------------------------------------------- attaching
    def check_compatible(self, strategy: Any) -> None:
        """Attach the updates, so that the strategy trains them only.

        :raises ValueError: see the class.
        """
        model = strategy.model
        if self._updates is not None and attachment(model, self.kind) is self._updates:
            return  # asked again, for a plugin that was added later
        for contract in strategy.contracts if self.merge else ():
            mixes = contract.replaces_deployed_weights
            if mixes and "initial" in contract.teacher_kinds(strategy):
                raise ValueError(
                    f"LoRAPlugin(merge=True) has other updates in each step, so that "
                    f"{type(contract.wrapped).__name__} finds no initial values of "
                    "them to mix in; use anchor='start'."
                )
        with seeded(named_seed(strategy.seed, 0)):
            self._updates = self.attach(model, **self.options)
        self.options = dict(self._updates.config)
        self.merged = 0
        strategy.make_optimizer(reset_optimizer_state=True)
        # What is frozen for good needs no place in checkpoints.
        strategy.groups.known = set(optim.trainable(model))
        if self.merge:
            strategy.groups.known |= _updated_names(model)

    # --------------------------------------------------------------- training
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Make fresh updates if the last ones were merged."""
        first, *others = self._all_updates(strategy)
        if first.keys:
            return
        for updates in (first, *others):
            with seeded(named_seed(strategy.seed, self.merged)):
                updates.add(self.merged)
            updates.set_ids(self.merged)
        first.train_ids([self.merged])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Merge the updates, unless that has been done."""
        self.merge_updates(strategy)

    def merge_updates(self, strategy: Any) -> None:
        """Put the updates into the weights, and forget their moments."""
        first, *others = self._all_updates(strategy)
        if not (self.merge and first.keys):
            return
        for _, parameter in first.trainable_parameters():
            strategy.optimizer.state.pop(parameter, None)
        for updates in (first, *others):
            updates.fold(self.share)
        self.merged += 1

    def _all_updates(self, strategy: Any) -> list[BranchSet]:
        """Updates of the model, and those that a running average of it has."""
        average = strategy.teachers.teachers.get("ema")
        models = [strategy.model] + ([] if average is None else [average.model])
        return [attachment(model, self.kind) for model in models]


def _updated_names(model: Any) -> set[str]:
    """Names of the weights that have updates."""
    sites = [
        site
        for branch in model.lora.branches()
        for own in branch.sites.values()
        for site in own
    ]
    weights = {id(getattr(site.owner, site.weight)) for site in sites}
    return {name for name, p in model.named_parameters() if id(p) in weights}


def lora_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the LoRA paper for GPT-2."""
    return torch.optim.AdamW(groups, lr=2e-4, weight_decay=0.01)


lora_groups = partial(optim.clip_param_groups, weight_decay=0.01)


class LoRATraining:
    """Takes the settings of :class:`LoRAPlugin`, and adds it.

    Put it before a strategy: ``class LoRAOnMine(LoRATraining, Mine): pass``.
    """

    _default_optimizer = staticmethod(lora_optimizer)
    _default_groups: optim.GroupRule | None = staticmethod(lora_groups)

    def __init__(
        self,
        *,
        merge: bool = False,
        share: float = 1.0,
        tower: str = "both",
        rank: int = 4,
        alpha: float = 32.0,
        targets: Iterable[str] = TARGETS,
        blocks: Iterable[int] | None = None,
        plugins: Sequence[Any] | None = None,
        schedule: str = "cosine",
        **kwargs: Any,
    ):
        sizes = {"tower": tower, "rank": rank, "alpha": alpha, "targets": targets}
        self.lora = LoRAPlugin(merge, share=share, blocks=blocks, **sizes)
        plugins = [*(plugins or ()), self.lora]
        trained: Any = super()
        trained.__init__(plugins=plugins, schedule=schedule, **kwargs)


class LoRA(LoRATraining, Sequential):
    """Sequential training of low-rank updates, merged after each step or not.

    Template plus :class:`LoRAPlugin`; on class names :class:`ClassNameLoRA`.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`. Its towers need
        residual attention blocks where updates are attached; of ``tiny-emoji`` only the
        text tower has them.
    :param merge: see :class:`LoRAPlugin`.
    :param share: see :class:`LoRAPlugin`.
    :param tower: see :func:`attach_lora`.
    :param rank: of the updates (4 in the LoRA paper's runs of GPT-2).
    :param alpha: updates are multiplied by ``alpha / rank``.
    :param targets: weights, see :func:`attach_lora`; queries and values as in the LoRA
        paper, or ``("qkv", "out")`` as in SIT.
    :param blocks: indices of the blocks, None for all.
    :param plugins: further plugins.
    :param schedule: learning-rate schedule of each step.
    :param kwargs: see :class:`Sequential`; the optimiser is AdamW with learning rate
        2e-4 and, unless ``param_groups`` are given, weight decay 0.01 on matrices.
    :raises ValueError: see :class:`LoRAPlugin`.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> strategy = LoRA(model=model, merge=True, rank=2, evaluator=None)
    >>> sorted({name.split(".")[-1] for name, p in model.named_parameters()
    ...         if p.requires_grad})
    ['query_down', 'query_up', 'value_down', 'value_up']
    """


class ClassNameLoRA(LoRATraining, ClassNameTemplate):
    """The same on images with class names.

    Takes what :class:`LoRA` takes.

    :param kwargs: see :class:`ClassNameTemplate`.
    """
