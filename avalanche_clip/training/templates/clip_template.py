"""What every CLIP training loop shares, on top of Avalanche's template."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.flat import has_deterministic_images
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.common.randomness import kept_rng, named_seed
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.accumulation import FeatureCache
from avalanche_clip.training.templates.compatibility import (
    check_plugins,
    contract_of,
    in_order,
    running_order,
)
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.eval_mixin import EvalMixin, by_stream
from avalanche_clip.training.templates.frozen_base import FrozenBase
from avalanche_clip.training.templates.loader_mixin import LoaderMixin
from avalanche_clip.training.templates.optimizer_mixin import OptimizerMixin
from avalanche_clip.training.templates.options import (
    check_keywords,
    check_options,
    known_options,
    refuse_unknown,
    warn_batch_norm,
)
from avalanche_clip.training.templates.plan_mixin import PlanMixin
from avalanche_clip.training.templates.step_mixin import (
    StepMixin,
)
from avalanche_clip.training.templates.stock_memories import forget_step
from avalanche_clip.training.templates.stock_metrics import (
    ClassView,
    check_classes,
    check_metrics,
)
from avalanche_clip.training.templates.teachers import TeacherService
from avalanche_clip.training.templates.visits import Visits
from avalanche_clip.training.templates.watchers import (
    check_step,
    check_watchers,
    forget_values,
)

logger = logging.getLogger(__name__)


def default_clip_evaluator() -> EvaluationPlugin:
    """Retrieval and loss metrics, printed by the main process."""
    loggers = [InteractiveLogger()] if distributed.is_main_process() else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(
            retrieval_plugin_metrics(), loss_metrics(epoch=True), loggers=loggers
        )


class CLIPTemplate(
    StepMixin, PlanMixin, EvalMixin, OptimizerMixin, LoaderMixin, SupervisedTemplate
):
    """Base of all strategies that train a CLIP-like model.

    Over Avalanche's template it adds: loaders that use the data's collate,
    seeded per sample and resumable anywhere; an optimiser that follows the
    model by parameter name; compute budgets beside epochs; schedules that are
    pure functions of the iteration; mixed precision; accumulation that equals
    the big batch; clipping; the clamp of the logit scale; DDP with the loss on
    the gathered batch; teachers shared by all plugins; and a stop at NaN.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: an optimiser, a callable ``(param_groups) -> Optimizer``,
        or None for AdamW with OpenCLIP's values.
    :param criterion: called as ``criterion(CLIPOutput, targets)``.
    :param param_groups: ``(named_parameters) -> groups`` with the names of
        each group; evaluated again whenever the model changes.
    :param train_mb_size: pairs per step and process.
    :param train_epochs: passes over the data; with a budget the number of
        equal parts it is cut into, after which epoch hooks run.
    :param eval_mb_size: images per evaluation batch; default
        ``train_mb_size``.
    :param budget_iterations: optimiser steps per experience.
    :param budget_samples: training pairs per experience.
    :param budget_macs: forward MACs per experience.
    :param schedule: ``"constant"``, ``"cosine"`` (per experience, to zero) or
        ``"const-cosine"`` (see :class:`ConstantCosinePlugin`).
    :param warmup_iterations: linear warm-up of the first experience, and of
        every one that starts from fresh weights (Restart, Oracle).
    :param later_warmup_iterations: that of the others (TiC-CLIP: none).
    :param precision: autocast type: ``"fp32"``, ``"bf16"`` or ``"fp16"``
        (with a gradient scaler).
    :param accumulation_steps: chunks per batch, see :class:`FeatureCache`.
    :param clip_grad_norm: largest gradient norm, None for no clipping.
    :param reset_optimizer_state: forget moments at each experience.
    :param seed: the one number behind data order, augmentation, buffers and
        the model's own randomness in training.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> CLIPTemplate:
        """Refuse unknown keywords before Avalanche does, which guesses nothing."""
        refuse_unknown(cls, sorted(set(kwargs) - known_options(cls)))
        return super().__new__(cls)

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        criterion: Any,
        param_groups: optim.GroupRule | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_clip_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        budget_iterations: int | None = None,
        budget_samples: int | None = None,
        budget_macs: float | None = None,
        schedule: str = "constant",
        warmup_iterations: int = 0,
        later_warmup_iterations: int = 0,
        precision: str = "fp32",
        accumulation_steps: int = 1,
        clip_grad_norm: float | None = None,
        reset_optimizer_state: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ):
        refuse_unknown(type(self), sorted(kwargs))
        settings = check_options(
            schedule=schedule,
            precision=precision,
            accumulation_steps=accumulation_steps,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            warmup_iterations=warmup_iterations,
            later_warmup_iterations=later_warmup_iterations,
            clip_grad_norm=clip_grad_norm,
            seed=seed,
            eval_mb_size=eval_mb_size,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        stock = ("eval_mb_size", "eval_every", "peval_mode")
        evaluation = {name: settings.pop(name) for name in stock}
        for name, value in settings.items():
            setattr(self, name, value)
        self.reset_optimizer_state = reset_optimizer_state
        self.decay_fraction = 0.2
        self.compute = ComputeBudget(
            iterations=budget_iterations, samples=budget_samples, macs=budget_macs
        )
        model.to(device)
        self._group_rule = param_groups
        super().__init__(
            model=model,
            optimizer=self._build_optimizer(model, optimizer),
            criterion=criterion,
            train_mb_size=settings["train_mb_size"],
            train_epochs=settings["train_epochs"],
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            **evaluation,
        )
        self._remember_optimizer(model)
        self._new_scaler()
        self._init_state()
        self.check_setup()
        if settings["accumulation_steps"] > 1:
            warn_batch_norm(model)

    # ---------------------------------------------------------------- state
    def _init_state(self) -> None:
        """Set what changes during a run to its first value."""
        self._ddp: nn.Module | None = None
        self._cache: FeatureCache | None = None
        self._contracts: dict[int, MethodPlugin] = {}
        self._pending: Any = None
        """What a run goes on with that was stored inside an experience."""
        self.run: Any = None
        """The run of :func:`run_stream` that is going on; checkpoints hold it."""
        self.frozen_base = FrozenBase(self)
        self.warned_inexact = False
        self.visits = Visits()
        """Which steps were trained, in which order and how often."""
        self.teachers = TeacherService(self)
        self.mb_features: CLIPOutput | None = None
        self.batch_sizes: list[int] = []
        self.text_counts: list[int] = []
        self.global_features: CLIPOutput | None = None
        self.loss_terms: dict[str, Tensor] = {}
        self.in_training = False
        """Whether ``train`` is running, nested evaluations included."""
        self.training_experience: Any = None
        self._checked: list[Any] = []
        self.step_phase = ""
        """``"open"`` while a step or the start of an experience changes the run,
        ``"counting"`` while a step is done but the clock has not moved; else empty."""
        self.planned_iterations = 0
        self.deterministic_images = False

    @property
    def contracts(self) -> list[MethodPlugin]:
        """What is asked of each plugin, in their order (see :class:`MethodPlugin`)."""
        for plugin in self.plugins:
            known = self._contracts.get(id(plugin))
            if known is None or known.wrapped is not plugin:
                self._contracts[id(plugin)] = contract_of(plugin)
        return [self._contracts[id(plugin)] for plugin in self.plugins]

    @property
    def experience_index(self) -> int:  # type: ignore[override]
        """Index of the running experience in its stream."""
        experience = self.experience
        if experience is None:
            return self.visits.next_index
        return int(experience.logging().current_experience)

    @property
    def mb_targets(self) -> Tensor:
        """Group ids of the batch, or sample ids where there are none."""
        assert self.mbatch is not None
        return self.mbatch[1]

    def class_view(self, width: int = 0) -> ClassView:
        """The strategy with ``mb_y`` and ``mb_output`` by global class id.

        :param width: smallest number of columns.
        """
        return ClassView(self, self.mb_targets, self._column_classes(), width)

    def _column_classes(self) -> Tensor:
        """Global id of each column of ``mb_output``."""
        raise NotImplementedError

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a term to the loss of this step (call in ``before_backward``).

        :param name: shown when the loss becomes NaN, and by
            :func:`loss_term_metrics`; terms of one name are summed.
        :param value: a scalar.
        """
        known = self.loss_terms.get(name)
        new = value.detach()
        self.loss_terms[name] = new if known is None else known + new
        self.loss = self.loss + value

    # ------------------------------------------------------------- training
    def check_setup(self) -> None:
        """Check and repair plugins and metrics, if there are others than before.

        ``train`` and ``eval`` call it, so that those that are appended after
        construction are treated like the others.

        :raises ValueError: naming what cannot work, the reason and the replacement.
        """
        have = [*in_order(self.plugins), self.evaluator, *self.evaluator.metrics]
        if len(have) == len(self._checked) and all(map(is_, have, self._checked)):
            return
        if self._checked:  # Avalanche has looked at those of the constructor
            self._check_plugin_compatibility()
            self._distributed_check = False
        self._give_up_schedule()
        check_plugins(self)
        check_metrics(self)
        self._checked = have

    def train(
        self, experiences: Any, eval_streams: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Train as Avalanche does; see its ``BaseTemplate.train``.

        :param experiences: one, or several to be trained one after the other.
        :param eval_streams: what a strategy with ``eval_every`` is evaluated on in
            training: experiences and streams, grouped by stream; default the
            training experiences.
        :param kwargs: for the loaders and callbacks.
        :return: the newest value of each metric.
        :raises ValueError: also if a plugin that watches these evaluations can never
            act.
        """
        with distributed.together("the arguments of train()"):
            self.check_setup()
            check_keywords("train", kwargs, self)
            if not isinstance(experiences, (CLExperience, Sequence)):
                experiences = list(experiences)
            given = experiences if eval_streams is None else eval_streams
            unused = eval_streams is None and self.eval_every < 0
            groups = [] if unused else by_stream(given)
            check_watchers(self, [group[0].origin_stream.name for group in groups])
        forget_values(self)
        single = isinstance(experiences, CLExperience)
        self.in_training = True
        self.training_experience = (
            experiences if single else next(iter(experiences), None)
        )
        try:
            with running_order(self):
                found: dict[str, Any] = super().train(experiences, groups, **kwargs)
            return found
        finally:
            self.in_training = False
            self.training_experience = None

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.training_experience = self.experience
        check_step(self, self.experience, self._eval_streams or [])
        check_classes(self, [self.experience.dataset], "train")
        self.step_phase = "open"
        self.visits.begin(self.experience)
        if self._pending is not None:
            self._pending.check(self)
        forget_step(self)
        self._seed_experience()
        self.compute.start_experience()
        if self._pending is None:  # else all this comes from the stored run
            if not self.visits.finished:
                for contract in self.contracts:
                    contract.prepare(self, self.experience.dataset)
            self.teachers.start_experience()
        if self.reset_optimizer_state:
            self._new_scaler()
        super()._before_training_exp(**kwargs)
        self.deterministic_images = has_deterministic_images(self.adapted_dataset)
        with distributed.together(f"the plan of experience {self.experience_index}"):
            self.planned_iterations = self._plan()
        self._agree_on_steps()
        for contract in self.contracts:
            contract.check_plan(self, self.planned_iterations)
        if self._pending is not None:
            self._pending.apply(self)
        self.compute.count_parameters(self.model)
        self.teachers.start_training()
        self.step_phase = ""

    def _seed_experience(self) -> None:
        """Seed all generators from the run's seed, the experience and its visit."""
        number = named_seed(self.seed, self.visits.seed_number)
        torch.manual_seed(number)
        # Stock buffers draw from these two.
        random.seed(number)
        np.random.seed(number & 0xFFFFFFFF)

    def _train_exp(
        self, experience: Any, eval_streams: Any = None, **kwargs: Any
    ) -> None:
        # A stop in the last epoch of one experience must not end the next one.
        self._stop_training = False
        for epoch in range(self.clock.train_exp_epochs, self.train_epochs):
            resumed = self._pending is not None and self.clock.train_epoch_iterations
            if not resumed:
                self.clock.train_epoch_iterations = 0
            self._plan_epoch()
            self._before_training_epoch(**kwargs)
            if resumed:
                self._pending.apply(self)
                self._plan_epoch()
            self._pending = None
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            distributed.broadcast_buffers(self.model)
            self._after_training_epoch(**kwargs)
            logger.debug("experience %d epoch %d", self.experience_index, epoch)
        self._pending = None
        distributed.exchange(f"the end of experience {self.experience_index}")
        self._require_finite_weights()

    def training_epoch(self, **kwargs: Any) -> None:
        """Train for the planned iterations of one epoch."""
        for mbatch in self._draw(self._plan_epoch()):
            self.mbatch = mbatch
            if self._stop_training:
                break
            self._unpack_minibatch()
            self._set_learning_rate()
            self._before_training_iteration(**kwargs)
            if self._stop_training:  # early stopping has loaded the best weights
                break
            self.step_phase = "open"
            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            self.loss_terms = {}

            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)

            self.add_loss("criterion", self.criterion())
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)

            self._before_update(**kwargs)
            self.optimizer_step()
            self._after_update(**kwargs)
            self._count_batch()
            self.step_phase = "counting"
            self._after_training_iteration(**kwargs)
            self.step_phase = ""
            for contract in self.contracts:
                contract.iteration_completed(self)

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.step_phase = ""
        self._forget_batch()

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self._forget_batch()

    def _forget_batch(self) -> None:
        self.mb_features = None
        self.global_features = None
        self.loss_terms = {}
        self._cache = None
        self.teachers.forget_batch()

    def _save_train_state(self) -> dict[str, Any]:
        names = ("mbatch", "mb_output", "loss", "mb_features", "global_features")
        batch = {name: getattr(self, name) for name in (*names, "loss_terms")}
        return {**super()._save_train_state(), "batch": batch}

    def _load_train_state(self, prev_state: dict[str, Any]) -> None:
        super()._load_train_state(prev_state)
        for name, value in prev_state["batch"].items():
            setattr(self, name, value)

    # ----------------------------------------------------------- evaluation
    @torch.no_grad()
    def eval(self, exp_list: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate on experiences and streams, one stream after the other.

        Random generators stay where they were. An evaluation that fails or is
        interrupted leaves the strategy, its metrics and its loggers as before.

        :param exp_list: an experience, a stream, or a list of them, which are grouped
            by stream as ``train`` groups ``eval_streams``.
        :param kwargs: for the loader and callbacks.
        :return: the newest value of each metric.
        """
        self.check_setup()
        check_keywords("eval", kwargs, self)
        groups = by_stream(exp_list)
        if not groups:
            raise ValueError("There is nothing to evaluate: no experience was given.")
        check_classes(self, [e.dataset for group in groups for e in group], "eval")
        with (
            kept_rng(self.device),
            running_order(self),
            self._undone_on_failure(),
        ):
            for group in groups:
                with self._noted(group):
                    super().eval(group, **kwargs)
        found: dict[str, Any] = self.evaluator.get_last_metrics()
        return found

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.step_phase = "closing"
        super()._after_training_exp(**kwargs)
        self.visits.end()
        self.step_phase = ""
        forget_values(self)
        experience, self.experience = self.experience, None
        for contract in self.contracts:
            contract.experience_completed(self)
        self.experience = experience
