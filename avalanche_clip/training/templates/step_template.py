"""The parts of a CLIP training loop, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.compatibility import contract_of
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.frozen_base import FrozenBase
from avalanche_clip.training.templates.loaders import eval_loader, train_loader
from avalanche_clip.training.templates.optimizer import OptimizerGroups
from avalanche_clip.training.templates.plan import Plan
from avalanche_clip.training.templates.step import Step
from avalanche_clip.training.templates.stock_metrics import ClassView
from avalanche_clip.training.templates.teachers import TeacherService
from avalanche_clip.training.templates.visits import Visits


class StepTemplate(SupervisedTemplate):
    """Data, model, optimiser, plan and teachers of a strategy, and one step.

    See :class:`CLIPTemplate`, which trains and evaluates with them. Each part is an
    object of its own: ``plan``, ``step``, ``groups``, ``teachers``, ``visits``,
    ``compute``, and one contract per plugin.
    """

    reads_captions = True
    """Whether the model sees the captions of the data, and not prompts of classes."""
    training_free = False
    """Whether nothing is trained."""
    repeats: int = 1
    """Consecutive steps on each batch, with augmentations of their own."""
    given_prompts: ClassPrompts | None = None
    """Class names and templates that the user gave; None for those of the data."""
    # For strategies with values of their own: the optimiser where the user gives
    # none, and its groups where the user gives no rule either.
    _default_optimizer: Callable[..., Optimizer] = staticmethod(optim.default_optimizer)
    _default_groups: optim.GroupRule | None = None

    experience: Any
    loss: Tensor
    mbatch: Any

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | None,
        param_groups: optim.GroupRule | None,
        device: str | torch.device,
        settings: dict[str, Any],
        sharding: str = "ddp",
        **stock: Any,
    ):
        self.__dict__.update(settings)
        self.decay_fraction = 0.2
        self.groups = OptimizerGroups(param_groups, may_be_empty=self.training_free)
        model.to(device)
        built = self.groups.build(
            model, optimizer, self._default_optimizer, self._default_groups
        )
        super().__init__(model=model, optimizer=built, device=device, **stock)
        self._contracts: list[MethodPlugin] = []
        self.built_plugins: list[tuple[MethodPlugin, dict[str, Any]]] = []
        """Plugins and their settings as they were built, see :func:`note_built`."""
        self.start_weights: str | None = None
        """Hash of pretrained weights before training, see :func:`start_weights`."""
        self._pending: Any = None
        """What a run goes on with that was stored inside an experience."""
        self.run: Any = None
        """The run of :func:`run_stream` that is going on; checkpoints hold it."""
        self.frozen_base = FrozenBase(self)
        self.warned_inexact = False
        self.plan = Plan(self)
        self.step = Step(self, sharding)
        self.visits = Visits()
        """Which steps were trained, in which order and how often."""
        self.teachers = TeacherService(self)
        self.mb_features: CLIPOutput | None = None
        self.batch_sizes: list[int] = []
        """Images of the step on each process."""
        self.text_counts: list[int] = []
        """Texts of the step on each process."""
        self.global_features: CLIPOutput | None = None
        self.loss_terms: dict[str, Tensor] = {}
        self.evaluates_for: str | None = None
        """Kind that evaluations are booked as; None: none, they are no part of it."""
        self.prepare_on: Any = None
        """Data that plugins are prepared on, where they are not the first step's."""
        self.in_training = False
        """Whether ``train`` is running, nested evaluations included."""
        self.training_experience: Any = None
        self.step_phase = ""
        """``"open"`` while a step or the start of an experience changes the run,
        ``"counting"`` while a step is done but the clock has not moved; else empty."""
        self.deterministic_images = False

    @property
    def contracts(self) -> list[MethodPlugin]:
        """What is asked of each plugin, in their order (see :class:`MethodPlugin`)."""
        known = {id(contract.wrapped): contract for contract in self._contracts}
        self._contracts = [known.get(id(p)) or contract_of(p) for p in self.plugins]
        return self._contracts

    @property
    def experience_index(self) -> int:  # type: ignore[override]
        """Index of the running experience in its stream."""
        experience = self.experience
        if experience is None:
            return self.visits.next_index
        return int(experience.logging().current_experience)

    def as_trained(self, benchmark: Any) -> Any:
        """Return a benchmark with the steps that are trained, by default its own.

        :func:`run_stream` and :func:`load_state` work on what this returns.
        """
        return benchmark

    @property
    def planned_iterations(self) -> int:
        """Optimiser steps of the running experience."""
        return self.plan.iterations

    @planned_iterations.setter
    def planned_iterations(self, iterations: int) -> None:
        self.plan.iterations = iterations

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

    # ------------------------------------------------------------------- a step
    def _unpack_minibatch(self) -> None:
        assert self.mbatch is not None
        if self.is_training:
            self.batch_sizes, self.text_counts = [], []
        self.mbatch = [part.to(self.device, non_blocking=True) for part in self.mbatch]

    def _set_learning_rate(self) -> None:
        self.plan.set_learning_rate()

    def autocast(self) -> torch.autocast:
        """Context of the forward passes of this strategy."""
        return self.step.autocast()

    def encode(self, batch: Any, *, synced: bool = False) -> CLIPOutput:
        """Encode a batch as training does.

        :param synced: so that the backward pass averages the gradients of processes.
        """
        ddp = self.step.synced if synced else None
        with self.autocast():
            return self.model(batch) if ddp is None else ddp(batch)

    def synced_module(self) -> nn.Module:
        """What several processes wrap: its forward pass encodes a batch."""
        return distributed.SyncedModel(self.model)

    def forward(self) -> Any:
        """Encode the batch; return what ``mb_output`` shall be."""
        if self.is_training:
            self.meet()
        output = self.mb_features = self.step.forward()
        if self.is_training:
            self.global_features = self.gather_output(output)
        else:
            self._count_evaluated(self.mb_x)
        return self._output(output)

    def meet(self) -> None:
        """Learn how many images and texts each process has in this step."""
        self.batch_sizes, self.text_counts = self.step.meet()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Join rows of this step's images, one each, over all processes.

        :param rows: ``(B, ...)``; processes may have different numbers.
        """
        return distributed.gather_rows(rows, self.batch_sizes)

    def gather_output(self, output: CLIPOutput) -> CLIPOutput:
        """Join the outputs of all processes to that of the whole batch."""
        return distributed.gather_output(output, self.batch_sizes)

    def batch_totals(self, batch: Any) -> tuple[int, int]:
        """Images and texts of a training batch over all processes."""
        if self.mbatch is not None and batch is self.mb_x:
            if not self.batch_sizes:
                self.meet()
            return sum(self.batch_sizes), sum(self.text_counts)
        world = distributed.world_size()
        return len(batch) * world, len(batch["text"]) * world

    def _output(self, output: CLIPOutput) -> Any:
        """What ``mb_output`` shall be."""
        raise NotImplementedError

    def backward(self) -> None:
        """Compute gradients (unscaled), and stop if the loss is not finite."""
        self.step.backward()

    def optimizer_step(self) -> None:
        """Clip, step, clamp the logit scale, and move the EMA teacher."""
        self.step.update()
        self.teachers.update_ema()

    def _count_batch(self) -> None:
        images, texts = self.batch_totals(self.mb_x)
        self.compute.spend("train", images=images, texts=texts, steps=1)

    def _count_evaluated(self, batch: Any) -> None:
        self.count_evaluated(len(batch), len(batch["text"]))

    def count_evaluated(self, images: int, texts: int) -> None:
        """Book what each process encodes in an evaluation."""
        world = distributed.world_size()
        counts = {"images": images * world, "texts": texts * world}
        if self.evaluates_for is None:
            self.compute.spend_evaluation(**counts)
        else:
            self.compute.spend(self.evaluates_for, **counts)

    def macs_per_sample(self, batch_size: int) -> float:
        """Forward MACs of one training sample with its share of the texts."""
        return float(sum(self.model.macs().values()))  # type: ignore[operator]

    def _forget_batch(self) -> None:
        self.mb_features = None
        self.global_features = None
        self.loss_terms = {}
        self.step.forget()
        self.teachers.forget_batch()

    def _save_train_state(self) -> dict[str, Any]:
        names = ("mbatch", "mb_output", "loss", "mb_features", "global_features")
        batch = {name: getattr(self, name) for name in (*names, "loss_terms")}
        return {**super()._save_train_state(), "batch": batch}

    def _load_train_state(self, prev_state: dict[str, Any]) -> None:
        super()._load_train_state(prev_state)
        for name, value in prev_state["batch"].items():
            setattr(self, name, value)

    # ------------------------------------------------- data, model and optimiser
    def make_train_dataloader(
        self, shuffle: bool = True, drop_last: bool = True, **kwargs: Any
    ) -> None:
        """Build the resumable loader over ``adapted_dataset``."""
        self.dataloader: Any = train_loader(
            self, kwargs, shuffle=shuffle, drop_last=drop_last
        )

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Build a plain, unshuffled loader over ``adapted_dataset``."""
        self.dataloader = eval_loader(self, kwargs)

    def check_pool(self, dataset: Any) -> None:
        """Raise if the data of an experience cannot be trained on.

        :param dataset: after all plugins have set it.
        """
        if len(dataset) == 0:
            raise ValueError(
                f"Experience {self.experience_index} has no training data; remove the "
                "empty step from the benchmark."
            )

    def make_optimizer(
        self, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Rebuild the optimiser's groups for the model as it is now."""
        self.optimized_param_id = self.groups.rebuild(self, reset=reset_optimizer_state)

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool | None = None, **kwargs: Any
    ) -> None:
        """Adapt the model, then the optimiser, then DDP."""
        if _at_task_boundary(self.experience, before=True):
            self.model = self.model_adaptation()
            reset = reset_optimizer_state
            reset = self.reset_optimizer_state if reset is None else reset
            self.make_optimizer(reset_optimizer_state=reset, **kwargs)
        self.step.synchronise()

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Call ``adaptation(experience)`` of growing modules, in training only."""
        model = self.model if model is None else model
        # A model restored inside an experience has already grown for it.
        if self.is_training and self._pending is None:
            for module in list(model.modules()):
                adapt = getattr(module, "adaptation", None)
                # Avalanche's modules may ask to be adapted by their parent.
                if callable(adapt) and getattr(module, "_auto_adapt", True):
                    adapt(self.experience)
        return model.to(self.device)

    def optimizer_state(self, *, copied: bool = True) -> dict[str, Any]:
        """Moments by parameter name and options by group, as plain data.

        :param copied: False gives the optimiser's own tensors, to be written
            before the next step.
        """
        return self.groups.state(self.optimizer, copied=copied)

    def load_optimizer_state(self, stored: dict[str, Any]) -> None:
        """Put back what :meth:`optimizer_state` returned.

        :raises ValueError: if there are other groups, naming them.
        """
        self.groups.load(self.optimizer, self.model, stored)
