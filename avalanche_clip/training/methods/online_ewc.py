"""Online EWC: one running Fisher and one anchor over the whole stream.

Source: Schwarz et al., ICML 2018 (arXiv 1805.06370), as used for languages by Yang
et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186): the Fisher is the mean over batches
of the squared gradient of the batch loss, Fishers are summed, the penalty has no
factor one half, and rows added to a table are free.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avalanche_clip.common.checks import as_finite
from avalanche_clip.training.methods.ewc import ContrastiveEWCPlugin, corner


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

    def __init__(
        self,
        ewc_lambda: float = 1000.0,
        *,
        gamma: float = 1.0,
        fisher_batch_size: int = 128,
        fisher_batches: int | None = None,
    ):
        super().__init__(
            ewc_lambda,
            fisher_batch_size=fisher_batch_size,
            fisher_batches=fisher_batches,
        )
        as_finite(gamma, "gamma", low=0, high=1)
        self.gamma = gamma

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty from the second experience on."""
        if self.fisher and self.ewc_lambda > 0:
            strategy.add_loss("ewc", self.ewc_lambda * self.penalty(strategy.model))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the Fisher of this experience; keep the weights."""
        if self.ewc_lambda == 0:
            return
        fisher = self.compute_fisher(strategy)
        for name, old in self.fisher.items():
            if name not in fisher:  # frozen now; it may be trained again later
                fisher[name] = self.gamma * old
            else:
                fisher[name][corner(old)] += self.gamma * old
        self.fisher = fisher
        self.anchor = {
            name: parameter.detach().clone()
            for name, parameter in strategy.model.named_parameters()
            if name in fisher
        }

    @staticmethod
    def square(gradient: Tensor) -> Tensor:
        """What a batch gradient adds; one that is not a number counts as 0."""
        return gradient.square().nan_to_num(nan=0.0)
