################################################################################
# Copyrights licensed under the MIT License.                                   #
# See the accompanying LICENSE file for terms.                                 #
################################################################################
"""Mod-X: a regularizer for models that embed pairs, such as images and captions."""

import copy
from typing import TYPE_CHECKING, Any, Optional, Sequence

import torch
import torch.nn.functional as F
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin
from avalanche.training.regularization import RegularizationMethod
from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


class OffDiagonalAlignment(RegularizationMethod):
    """Keep how the previous model lays out the pairs of a minibatch.

    The matrix of similarities of a minibatch, first elements against second ones,
    is distilled row by row from the model after the last experience: only from the
    rows in which that model ranks the partner first. The same is done for the
    columns.

    Ni et al., "Continual Vision-Language Representation Learning with Off-Diagonal
    Information", ICML 2023 (Mod-X).
    """

    def __init__(self, alpha: float = 20.0, temperature: float = 1.0):
        """Init.

        :param alpha: weight of the term, at least 0. The term is a sum over rows,
            so its effect grows with the size of the minibatch.
        :param temperature: divides the similarities of both models, above 0.
        """
        if alpha < 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}.")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.alpha = alpha
        self.temperature = temperature
        self.prev_model: Optional[Module] = None

    def _one_direction(self, scores: Tensor, prev_scores: Tensor) -> Tensor:
        """Sum of KL divergences over the rows that the previous model gets right."""
        correct = prev_scores.diagonal() >= prev_scores.amax(dim=1)
        divergence = F.kl_div(
            torch.log_softmax(scores / self.temperature, dim=1),
            torch.log_softmax(prev_scores / self.temperature, dim=1),
            reduction="none",
            log_target=True,
        ).sum(dim=1)
        return (divergence * correct).sum()

    def loss(self, scores: Tensor, prev_scores: Tensor) -> Tensor:
        """The unweighted term.

        :param scores: cosines of the current model, shape (B, B): first element i
            against second element j.
        :param prev_scores: cosines of the previous model.

        :return: a scalar, the mean of both directions.
        """
        rows = self._one_direction(scores, prev_scores)
        columns = self._one_direction(scores.T, prev_scores.T)
        return (rows + columns) / 2

    def __call__(self, mb_x: Any, mb_pred: Sequence[Tensor], model: Module):
        """Compute the weighted term.

        :param mb_x: input of the minibatch, for the previous model.
        :param mb_pred: output of the current model. It must start with the two
            embeddings of each pair, of shape (B, D).
        :param model: current model. Not used.

        :return: a scalar, 0 during the first experience.
        """
        if self.prev_model is None or self.alpha == 0:
            return 0
        with torch.no_grad():
            prev_pred = self.prev_model(mb_x)
        return self.alpha * self.loss(_cosines(mb_pred), _cosines(prev_pred))

    def post_adapt(self, agent, exp):
        """Save a copy of the model after each experience."""
        if self.alpha == 0:
            return
        self.prev_model = copy.deepcopy(agent.model).eval()
        self.prev_model.requires_grad_(False)


def _cosines(pred: Sequence[Tensor]) -> Tensor:
    firsts, seconds = (F.normalize(part.float(), dim=1) for part in pred[:2])
    return firsts @ seconds.T


class OffDiagonalAlignmentPlugin(SupervisedPlugin):
    """Off-diagonal alignment (Mod-X) plugin.

    Mod-X uses distillation of in-batch similarities to regularize models that embed
    pairs, such as images and captions, trained with a contrastive loss.
    The model must return a tuple that starts with the two embeddings.

    The plugin keeps one copy of the model, which runs on each minibatch.
    This plugin does not use task identities.
    """

    def __init__(self, alpha: float = 20.0, temperature: float = 1.0):
        """Init.

        :param alpha: weight of the term, at least 0. The term is a sum over rows,
            so its effect grows with the size of the minibatch.
        :param temperature: divides the similarities of both models, above 0.
        """
        super().__init__()
        self.alignment = OffDiagonalAlignment(alpha, temperature)

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs):
        """
        Add the alignment term
        """
        strategy.loss += self.alignment(
            strategy.mb_x, strategy.mb_output, strategy.model
        )

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs):
        """
        Save a copy of the model after each experience
        """
        self.alignment.post_adapt(strategy, strategy.experience)


__all__ = ["OffDiagonalAlignment", "OffDiagonalAlignmentPlugin"]
