"""Keep the weights of the epoch that retrieves best on validation data.

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the released code:
after each epoch retrieval on the validation set of the current language; the
weights with the highest mean recall end the task and start the next one.
"""

from __future__ import annotations

from typing import Any

from avalanche_clip import distributed
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.training.methods.early_stopping import EpochChoice
from avalanche_clip.training.templates.contract import routed

RECALLS = tuple(
    f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
)
"""Of these the mean is the source's ``r_mean``."""


class BestEpochPlugin(EpochChoice, supports_distributed=True):
    """Evaluate after each epoch, and end the experience with the best weights.

    The score is the mean of :data:`RECALLS` over the validation data of the running
    experience: those of its languages, or of the same index where experiences name
    none. Of equal scores the earlier epoch counts. The best weights are put back
    after the last epoch, before other plugins close the experience.

    Memory: a copy of what is trained, and of the buffers. Time: a pass over the
    validation data per epoch, booked as ``"search"``; with one epoch there is
    nothing to choose and nothing is evaluated. :class:`EarlyStopping` watches any
    metric, and ends the experience early.

    :param validation: stream to choose on.
    """

    def _measure(self, strategy: Any) -> None:
        self._decide(strategy, self._score(strategy))

    def _score(self, strategy: Any) -> float:
        """Mean of the metrics; that of the main process counts."""
        if not distributed.is_main_process():
            return 0.0
        values = [self._retrieve(strategy, data) for data in self._data(strategy)]
        return sum(values) / len(values)

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
