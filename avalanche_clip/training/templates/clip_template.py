"""What every CLIP training loop shares, on top of Avalanche's template."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.flat import has_deterministic_images
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.common.randomness import kept_rng, named_seed
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.agreement import (
    agree_on_steps,
    agree_on_training,
)
from avalanche_clip.training.templates.compatibility import (
    check_plugins,
    in_order,
    running_order,
    taken_off_on_error,
)
from avalanche_clip.training.templates.contract import routed
from avalanche_clip.training.templates.evaluation import (
    by_stream,
    noted,
    undone_on_failure,
)
from avalanche_clip.training.templates.options import (
    as_rates,
    at_rate,
    check_keywords,
    check_options,
    known_options,
    refuse_unknown,
    shown_signature,
    warn_batch_norm,
)
from avalanche_clip.training.templates.plan import of_experience
from avalanche_clip.training.templates.settings import note_built
from avalanche_clip.training.templates.sharding import (
    check_sharding,
    shared_out,
    whole,
)
from avalanche_clip.training.templates.step_template import StepTemplate
from avalanche_clip.training.templates.stock_memories import forget_step
from avalanche_clip.training.templates.stock_metrics import (
    check_classes,
    check_metrics,
)

logger = logging.getLogger(__name__)


def printing_evaluator(*metrics: Any) -> EvaluationPlugin:
    """Metrics that the main process prints."""
    loggers = [InteractiveLogger()] if distributed.is_main_process() else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(*metrics, loggers=loggers)


def default_clip_evaluator() -> EvaluationPlugin:
    """Retrieval and loss metrics, printed by the main process."""
    return printing_evaluator(retrieval_plugin_metrics(), loss_metrics(epoch=True))


class CLIPTemplate(StepTemplate):
    """Base of all strategies that train a CLIP-like model.

    Over Avalanche's template it adds: loaders that use the data's collate,
    seeded per sample and resumable anywhere; an optimiser that follows the
    model by parameter name; compute budgets beside epochs; schedules that are
    pure functions of the iteration; mixed precision; accumulation that equals
    the big batch; clipping; the clamp of the logit scale; DDP with the loss on
    the gathered batch; teachers shared by all plugins; and a stop at NaN.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: an optimiser, a callable ``(param_groups) -> Optimizer``,
        or None for AdamW with OpenCLIP's values. A callable's settings are its own:
        its weight decay holds for matrices (none for the rest).
    :param lr: learning rate in place of the strategy's, or one per experience; not
        with an ``optimizer``, which has its own. A rate of a group, from
        ``param_groups``, wins.
    :param criterion: called as ``criterion(CLIPOutput, targets)``.
    :param param_groups: ``(named_parameters) -> groups`` with the names of
        each group; evaluated again whenever the model changes. Options of a group,
        such as weight decay, win over what a callable ``optimizer`` has for all.
        Without ``optimizer`` the default is the strategy's, here weight decay 0.2 on
        matrices and 0 on the rest.
    :param train_mb_size: pairs per step and process.
    :param train_epochs: passes over the data, one number or one per experience; with
        a budget the number of equal parts it is cut into, after which epoch hooks run.
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
    :param sharding: what several processes do with the weights: ``"ddp"``: each holds
        all; ``"fsdp2"``: while an epoch is trained each holds a part of the towers'
        weights, gradients and moments (FSDP2). Needs a
        :class:`~avalanche_clip.models.DualEncoder`; methods that read weights in each
        step and fp16 are refused. One process holds all.
    :param seed: the one number behind data order, augmentation, buffers and
        the model's own randomness in training.
    """

    former_options = ""
    """Former name of its ``plugin_options``."""
    own_defaults: Mapping[str, Any] = {}
    """Defaults in place of those of its bases, shown in its signature."""
    sets: Sequence[str] = ()
    """Keywords of its bases that it sets itself and does not take."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = shown_signature(cls)  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **kwargs: Any) -> CLIPTemplate:
        """Refuse unknown keywords before Avalanche does, which guesses nothing."""
        refuse_unknown(cls, sorted(set(kwargs) - known_options(cls)))
        return super().__new__(cls)

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        lr: float | Sequence[float] | None = None,
        criterion: Any,
        param_groups: optim.GroupRule | None = None,
        train_mb_size: int = 128,
        train_epochs: int | Sequence[int] = 1,
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
        sharding: str = "ddp",
        seed: int = 0,
        **kwargs: Any,
    ):
        refuse_unknown(type(self), sorted(kwargs))
        distributed.require_joined()
        settings = check_options(
            schedule=schedule,
            precision=precision,
            accumulation_steps=accumulation_steps,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            warmup_iterations=warmup_iterations,
            later_warmup_iterations=later_warmup_iterations,
            clip_grad_norm=clip_grad_norm,
            sharding=sharding,
            seed=seed,
            eval_mb_size=eval_mb_size,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        stock = ("train_mb_size", "train_epochs", "eval_mb_size", "eval_every")
        kept = {name: settings.pop(name) for name in (*stock, "peval_mode", "sharding")}
        self.reset_optimizer_state = reset_optimizer_state
        self.compute = ComputeBudget(
            iterations=budget_iterations, samples=budget_samples, macs=budget_macs
        )
        self._checked: list[Any] = []
        self.learning_rates: tuple[float, ...] = () if lr is None else as_rates(lr)
        """Rates of the experiences, or one for all; empty: the optimiser's own."""
        if lr is not None:
            if optimizer is not None:
                raise ValueError("Give lr or an optimizer with its own rate, not both.")
            own, rate = param_groups is not None, self.learning_rates[0]
            make = partial(at_rate, self._default_optimizer, rate, own)
            settings["_default_optimizer"] = make
        if len(self.learning_rates) > 1:
            self.lr = self.learning_rates  # a setting that a resumed run must share
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            param_groups=param_groups,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            settings=settings,
            **kept,
        )
        self.check_setup()
        if self.accumulation_steps > 1:
            warn_batch_norm(model)

    # ------------------------------------------------------------- training
    @property
    def train_epochs(self) -> int:  # type: ignore[override]
        """Epochs of the running experience, or of the next one."""
        given = self.__dict__["train_epochs"]
        if isinstance(given, int):
            return given
        return int(of_experience(given, self, "numbers of epochs"))

    @train_epochs.setter
    def train_epochs(self, given: int | Sequence[int]) -> None:
        # Kept by its name: it is one of the settings that a run must share.
        self.__dict__["train_epochs"] = given

    def check_setup(self) -> None:
        """Check and repair plugins and metrics, if there are others than before.

        ``train`` and ``eval`` call it, so that those that are appended after
        construction are treated like the others.

        :raises ValueError: naming what cannot work, the reason and the replacement;
            the model then has nothing attached that it had not before.
        """
        have = [*in_order(self.plugins), self.evaluator, *self.evaluator.metrics]
        if len(have) == len(self._checked) and all(map(is_, have, self._checked)):
            return
        if self._checked:  # Avalanche has looked at those of the constructor
            self._check_plugin_compatibility()
            self._distributed_check = False
        self.plan.give_up_schedule()
        with taken_off_on_error(self.model):
            check_plugins(self)
            check_metrics(self)
            check_sharding(self)
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
        :raises RankError: when another process is about to train other data, with
            other settings, from other weights or other steps; when it fails, ends
            or does not answer in time.
        """
        with distributed.together("the arguments of train()"):
            self.check_setup()
            check_keywords("train", kwargs, self)
            note_built(self)
            if not isinstance(experiences, (CLExperience, Sequence)):
                experiences = list(experiences)
            given = experiences if eval_streams is None else eval_streams
            unused = eval_streams is None and self.eval_every < 0
            groups = [] if unused else by_stream(given)
            names = [group[0].origin_stream.name for group in groups]
            for contract in self.contracts:
                contract.check_evaluations(self, names)
        for contract in self.contracts:
            contract.forget_values()
        single = isinstance(experiences, CLExperience)
        self.in_training = True
        self.training_experience = (
            experiences if single else next(iter(experiences), None)
        )
        try:
            with running_order(self), distributed.guarded("train()"):
                agree_on_training(self, experiences, groups, kwargs)
                found: dict[str, Any] = super().train(experiences, groups, **kwargs)
            return found
        finally:
            self.in_training = False
            self.training_experience = None

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.training_experience = self.experience
        for contract in self.contracts:
            contract.check_step(self, self.experience, self._eval_streams or [])
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
                given = self.prepare_on
                dataset = self.experience.dataset if given is None else given
                for contract in self.contracts:
                    contract.prepare(self, dataset)
            self.teachers.start_experience()
        if self.reset_optimizer_state:
            self.step.new_scaler()
        super()._before_training_exp(**kwargs)
        self.deterministic_images = has_deterministic_images(self.adapted_dataset)
        with distributed.together(f"the plan of experience {self.experience_index}"):
            self.plan.start()
        agree_on_steps(self)
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
            self.plan.start_epoch()
            self._before_training_epoch(**kwargs)
            if resumed:
                self._pending.apply(self)
                self.plan.start_epoch()
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
        self.step.require_finite_weights()

    def training_epoch(self, **kwargs: Any) -> None:
        """Train for the planned iterations of one epoch."""
        with shared_out(self.step):
            self._train_batches(**kwargs)

    def _train_batches(self, **kwargs: Any) -> None:
        for mbatch in self.plan.batches():
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
            with routed(self, self.mb_x):
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
        distributed.require_joined()
        self.check_setup()
        check_keywords("eval", kwargs, self)
        groups = by_stream(exp_list)
        if not groups:
            raise ValueError("There is nothing to evaluate: no experience was given.")
        check_classes(self, [e.dataset for group in groups for e in group], "eval")
        with (
            kept_rng(self.device),
            whole(self.step),
            running_order(self),
            undone_on_failure(self),
        ):
            for group in groups:
                with noted(self, group), distributed.guarded("eval()"):
                    super().eval(group, **kwargs)
        found: dict[str, Any] = self.evaluator.get_last_metrics()
        return found

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.step_phase = "closing"
        with running_order(self, closing=True):
            super()._after_training_exp(**kwargs)
        self.visits.end()
        self.step_phase = ""
        for contract in self.contracts:
            contract.forget_values()
        experience, self.experience = self.experience, None
        for contract in self.contracts:
            contract.experience_completed(self)
        self.experience = experience
