"""EWC for contrastive models, with a batch-level Fisher.

Source: Kirkpatrick et al., PNAS 2017 (EWC), as used in the appendix of Garg et
al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226). A contrastive loss does not split
over samples, so the diagonal Fisher is the mean over mini-batches of the
squared batch gradient (our choice); its batch size is a setting.

Online EWC: Schwarz et al., ICML 2018 (arXiv 1805.06370), as used for languages by Yang
et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186): Fishers are summed, the penalty has no
factor one half, and rows added to a table are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_finite, as_size
from avalanche_clip.common.grown import corner
from avalanche_clip.common.progress import progress
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.training.templates.contract import MethodPlugin, routed
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader


@dataclass(eq=False)
class ContrastiveEWCPlugin(MethodPlugin, supports_distributed=True):
    """Pull weights towards those of the previous step, by importance.

    Adds ``ewc_lambda / 2 * sum_p F_p (theta_p - theta*_p)^2``. Memory: two
    copies of the trainable weights. Time: the Fisher pass after each
    experience, and the penalty per step.

    :param ewc_lambda: weight, ``>= 0``; 0 turns the method off exactly.
    :param fisher_batch_size: pairs per batch of the Fisher pass.
    :param fisher_batches: batches of the pass; None for one pass over the data
        of the step.
    :param decay: weight of the old Fisher when a new one is added; 0 keeps
        the last step's only, as TiC-CLIP does. Rows that are new have none, and what
        is frozen for a while keeps its decayed one.
    """

    state_attributes = ("fisher", "anchor")
    keeps_per_weight_state = True
    reads_weights_in_steps = True
    protects_weights = True
    nominal_cost = 1.2
    """Cost in plain budgets, as accounted in TiC-CLIP."""
    share = 0.5
    """What ``ewc_lambda`` is multiplied by."""

    ewc_lambda: float = 1.0
    _: KW_ONLY
    fisher_batch_size: int = 128
    fisher_batches: int | None = None
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()
        as_finite(self.ewc_lambda, "ewc_lambda", low=0)
        as_size(self.fisher_batch_size, "fisher_batch_size", least=2)
        if self.fisher_batches is not None:
            as_size(self.fisher_batches, "fisher_batches", hint="None takes all data")
        as_finite(self.decay, "decay", low=0, high=1)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def prepare(self, strategy: Any, dataset: Any) -> None:
        """Compute the first Fisher on data that a run was given for that."""
        if strategy.prepare_on is not None and self.ewc_lambda > 0:
            self._keep(strategy, self.compute_fisher(strategy, dataset))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty as soon as there is a Fisher."""
        if self.fisher and self.ewc_lambda > 0:
            penalty = self.penalty(strategy.model)
            strategy.add_loss("ewc", self.ewc_lambda * self.share * penalty)

    def penalty(self, model: torch.nn.Module) -> Tensor:
        """``sum_p F_p (theta_p - theta*_p)^2`` over parameters known before."""
        terms = []
        for name, parameter in model.named_parameters():
            if name not in self.fisher or not parameter.requires_grad:
                continue
            fisher, anchor = self.fisher[name], self.anchor[name]
            now: Tensor = parameter
            if fisher.shape != now.shape:  # the parameter grew
                now = now[corner(fisher)]
            terms.append((fisher * (now - anchor).square()).sum())
        if not terms:  # everything that was trained is frozen now
            return torch.zeros((), device=next(model.parameters()).device)
        return torch.stack(terms).sum()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Compute the Fisher on the data of this step; keep the weights."""
        if self.ewc_lambda > 0:
            self._keep(strategy, self.compute_fisher(strategy))

    def _keep(self, strategy: Any, fisher: dict[str, Tensor]) -> None:
        """Add the old Fisher to a new one, and keep the weights."""
        for name, old in self.fisher.items() if self.decay > 0 else ():
            if name in fisher:
                fisher[name][corner(old)] += self.decay * old
            else:  # frozen now; it may be trained again later
                fisher[name] = self.decay * old
        self.fisher = fisher
        self.anchor = {
            n: p.detach().clone()
            for n, p in strategy.model.named_parameters()
            if n in fisher
        }

    def compute_fisher(self, strategy: Any, dataset: Any = None) -> dict[str, Tensor]:
        """Mean squared batch gradient of the strategy's loss, per parameter.

        :param dataset: default that of the running experience.
        """
        model = strategy.model
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        fisher = {n: torch.zeros_like(p) for n, p in named.items()}
        given = () if dataset is None else (dataset,)
        count, loader = 0, self._loader(strategy, *given)
        with evaluating(model), _no_half(strategy):
            for batch, targets, *_ in progress(loader, "Fisher pass"):
                batch, targets = batch.to(strategy.device), targets.to(strategy.device)
                loss = self.batch_loss(strategy, batch, targets)
                gradients = torch.autograd.grad(
                    loss, list(named.values()), allow_unused=True
                )
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        fisher[name] += self.square(gradient)
                count += 1
        return {n: value / count for n, value in fisher.items()}

    def batch_loss(self, strategy: Any, batch: Any, targets: Tensor) -> Tensor:
        """The loss that the strategy trains with, on one batch."""
        with routed(strategy, batch):
            output = strategy.encode(batch)
        images = len(batch)
        if "text_raw" in (output.aux or {}):  # CLLCLIP: no image was encoded for it
            targets, images = batch.get("image_id", targets), 0
        strategy.compute.spend("fisher", images=images, texts=len(batch["text"]))
        return strategy._criterion(output, targets)

    @staticmethod
    def square(gradient: Tensor) -> Tensor:
        """What a batch gradient adds to the Fisher."""
        return gradient.square()

    def _loader(self, strategy: Any, dataset: Any = None) -> TrainLoader:
        given = strategy.experience.dataset if dataset is None else dataset
        dataset = given.train()
        order = TrainingOrder(
            len(dataset),
            self.fisher_batch_size,
            seed=strategy.seed,
            experience=10**6 + strategy.visits.seed_number,
            continuous=self.fisher_batches is not None,
        )
        loader = TrainLoader(dataset, order, collate_fn=dataset.collate_fn)
        if self.fisher_batches is not None:
            loader.plan(0, 0, self.fisher_batches)
        pairs = len(loader) * order.batch_size
        hint = "fisher_batches makes it shorter"
        strategy.plan.announce("Fisher pass", pairs, hint)
        return loader


@contextmanager
def _no_half(strategy: Any) -> Iterator[None]:
    """Leave fp16 for a while: squares of its gradients underflow without a scaler."""
    precision = strategy.precision
    strategy.precision = "fp32" if precision == "fp16" else precision
    try:
        yield
    finally:
        strategy.precision = precision


class OnlineEWCPlugin(ContrastiveEWCPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Pull weights towards those of the last experience, by summed importance.

    Adds ``ewc_lambda * sum_p F_p (theta_p - theta*_p)^2``. After each experience
    ``F = gamma * F + F_new`` and the anchor moves to the weights of now. A parameter
    that grows along its first axis keeps the importance of its old rows; new rows
    have none until they have been trained.

    Memory: two copies of what is trained, a grown token table included; it is
    then trained as a whole, not by active rows. Time: a pass over the data after each
    experience, and the penalty per step.

    :param ewc_lambda: weight, ``>= 0``; 0 turns the method off exactly.
    :param gamma: weight of the old Fisher, in ``[0, 1]``.
    :param fisher_batch_size: pairs per batch of the Fisher pass.
    :param fisher_batches: batches of the pass; None for one pass over the data.
    """

    nominal_cost = 1.0
    share = 1.0

    def __init__(
        self,
        ewc_lambda: float = 1000.0,
        *,
        gamma: float = 1.0,
        fisher_batch_size: int = 128,
        fisher_batches: int | None = None,
    ):
        self.gamma = as_finite(gamma, "gamma", low=0, high=1)
        super().__init__(
            ewc_lambda,
            fisher_batch_size=fisher_batch_size,
            fisher_batches=fisher_batches,
            decay=gamma,
        )

    @staticmethod
    def square(gradient: Tensor) -> Tensor:
        """What a batch gradient adds; one that is not a number counts as 0."""
        return gradient.square().nan_to_num(nan=0.0)
