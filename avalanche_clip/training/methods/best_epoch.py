"""Keep the weights of the epoch that retrieves best on validation data.

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the released code:
after each epoch retrieval on the validation set of the current language; the
weights with the highest mean recall end the task and start the next one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.streams.merged import counterparts
from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.models import ExpandableTokenEmbedding
from avalanche_clip.training.templates.contract import MethodPlugin, routed

RECALLS = tuple(
    f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
)
"""Of these the mean is the source's ``r_mean``."""


class BestEpochPlugin(MethodPlugin, supports_distributed=True):
    """Evaluate after each epoch, and end the experience with the best weights.

    The score is the mean of :data:`RECALLS` over the validation data of the running
    experience: those of its languages, or of the same index where experiences name
    none. Of equal scores the earlier epoch counts. The best weights are put back
    after the last epoch, before other plugins close the experience.

    Memory: a copy of what is trained, and of the buffers. Time: a pass over the
    validation data per epoch, booked as ``"search"``; with one epoch there is
    nothing to choose and nothing is evaluated.

    :param validation: stream to choose on.
    """

    only_one = True
    state_attributes = ("_best", "_factors")
    keeps_per_weight_state = False

    def __init__(self, validation: str = "valid"):
        super().__init__()
        self.validation = validation
        self.chosen: list[int] = []
        """Epoch kept of each finished experience, counted from 0."""
        self.scores: list[float] = []
        """Scores of the epochs of the running experience."""
        self._best: dict[str, Tensor] = {}
        self._factors: dict[str, float] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start anew; a missing stream is reported before training."""
        self._forget()
        if strategy.train_epochs > 1:
            self._data(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluate; keep the weights, or put the best ones back at the end."""
        epochs = strategy.train_epochs
        if epochs == 1:
            return
        score = self._score(strategy)
        if not self.scores or score > max(self.scores):
            self._best = {
                name: value.detach().clone() for name, value in _moving(strategy.model)
            }
            self._factors = _factors(strategy.model)
        self.scores.append(score)
        if len(self.scores) == epochs:
            self._restore(strategy.model)
            self._best = {}  # what others close the experience with stays

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note the epoch; put its weights back if training has been stopped."""
        self._restore(strategy.model)
        scores = self.scores or [0.0]
        self.chosen.append(scores.index(max(scores)))
        self._forget()

    def _forget(self) -> None:
        self.scores, self._best, self._factors = [], {}, {}

    @torch.no_grad()
    def _restore(self, model: torch.nn.Module) -> None:
        if not self._best:
            return
        for name, value in _moving(model):
            value.copy_(self._best[name])
        for name, factor in self._factors.items():
            module: Any = model.get_submodule(name)
            module.factor = factor

    # ----------------------------------------------------------- validation
    def _score(self, strategy: Any) -> float:
        """Mean of the metrics, the same in every process."""
        score = 0.0
        if distributed.is_main_process():
            values = [self._retrieve(strategy, data) for data in self._data(strategy)]
            score = sum(values) / len(values)
        return float(distributed.broadcast_object(score))

    def _retrieve(self, strategy: Any, dataset: Any) -> float:
        def encode(batch: Any) -> Any:
            training, strategy.is_training = strategy.is_training, False
            try:
                with routed(strategy, batch):
                    return strategy.encode(batch)
            finally:
                strategy.is_training = training

        found = evaluate_retrieval(
            strategy.model,
            dataset,
            batch_size=strategy.eval_mb_size,
            device=strategy.device,
            budget=strategy.compute,
            encode=encode,
        )
        return sum(found[name] for name in RECALLS) / len(RECALLS)

    def _data(self, strategy: Any) -> list[Any]:
        """Validation data of the running experience."""
        experience = strategy.experience.logging()
        streams = getattr(experience.origin_stream.benchmark, "streams", {})
        if self.validation not in streams:
            raise ValueError(
                f"BestEpochPlugin chooses on stream {self.validation!r}, but the "
                f"benchmark has {sorted(streams)}; make one with validation=True or "
                f"split_validation.{did_you_mean(self.validation, streams)}"
            )
        stream = list(streams[self.validation])
        languages = set(getattr(experience, "languages", ()))
        found = [e for e in stream if languages & set(getattr(e, "languages", ()))]
        if not languages:
            found = counterparts(experience, stream)
        if not found:
            raise ValueError(
                f"Stream {self.validation!r} has no data for experience "
                f"{strategy.experience_index}; give it one experience per step or "
                "language."
            )
        return [e.dataset for e in found]


def _moving(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters that are trained, and buffers."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [*named, *model.named_buffers()]


def _factors(model: torch.nn.Module) -> dict[str, float]:
    """Decay that growing token tables have not applied yet, by module."""
    return {
        name: float(module.factor)
        for name, module in model.named_modules()
        if isinstance(module, ExpandableTokenEmbedding)
    }
