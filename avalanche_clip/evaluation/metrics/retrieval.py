"""Retrieval metrics of the test streams of a continual run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_clip.common.checks import (
    require_array,
    require_indices,
    require_length,
)
from avalanche_clip.evaluation.functional import merge_equal_pairs, retrieval_metrics
from avalanche_clip.evaluation.functional.retrieval import guessed_recalls
from avalanche_clip.evaluation.metrics._values import bare_model, metric_values
from avalanche_clip.evaluation.metrics.summary import ContinualSummary

StreamResults = dict[str, dict[int, dict[str, float]]]


class FeatureBank(NamedTuple):
    """Features of a data set: distinct images ``(N, D)`` and texts ``(M, D)``.

    ``owner`` holds (text, image) pairs ``(P, 2)``: equal captions are one text
    owned by several images, equal pictures one image with the captions of all its
    samples, see :func:`merge_equal_pairs`. Unmerged it is the image of each text.
    """

    image_features: Tensor
    text_features: Tensor
    owner: Tensor


class RetrievalMetric(PluginMetric[dict[str, float]]):
    """Image-text retrieval on each test experience and its mean over a stream.

    During evaluation the features of one test experience are collected on the
    CPU as float32, together with the marks of its captions and pictures: 4 * D + 16
    bytes per image and caption. Equal captions count as one that belongs to several
    images, and equal pictures (rows with one caption each that repeat the picture)
    as one that owns the captions of all its rows; see :func:`merge_equal_pairs`.
    ``stream_results[stream][index]`` keeps the values of the last evaluation, and
    ``chance`` what guessing would score on the last experience.

    Emitted are the values of :func:`retrieval_metrics` as Python floats, named
    ``image_to_text_R@1/eval_phase/test_stream/Task000/Exp000`` for each
    experience, and without the task and experience parts for the means over
    the experiences of a stream.

    The strategy has to provide ``mb_features`` (image and text features) and
    ``mb_x`` with the keys ``owner`` and, to find equal captions and pictures,
    ``caption_key``, ``language`` and ``image_key``. Where captions have no marks
    (batches of another collate) they are told apart by their token ids in ``text``,
    so that captions which differ after the cut only would count as one.

    :param ks: numbers of results looked at.
    :param ties: tie policy, see :func:`retrieval_metrics`.
    :param tie_eps: largest difference of two scores that counts as a tie.
    :param chunk_size: side of the score tiles; affects memory and speed only.
    :param deduplicate: whether equal captions, and equal pictures, count as one.
    :param stream: whether to emit the means over each evaluated stream.
    """

    device: str | torch.device = "cpu"
    """Where features are kept until they are ranked, on the CPU."""

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1, 5, 10),
        ties: str = "pessimistic",
        tie_eps: float = 1e-6,
        chunk_size: int = 1024,
        deduplicate: bool = True,
        stream: bool = True,
    ) -> None:
        super().__init__()
        # one call on one pair checks all options before any data is read
        one = torch.ones(1, 1)
        self.ranking: Any = {"ties": ties, "tie_eps": tie_eps, "chunk_size": chunk_size}
        retrieval_metrics(one, one, ks=ks, **self.ranking)
        self.ks = tuple(ks)
        self.deduplicate = deduplicate
        self.stream = stream
        self.stream_results: StreamResults = {}
        self.chance: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the features collected so far."""
        self._kept: dict[str, list[Tensor]] = {}
        self._num_images = 0
        self._pad_id = 0

    def update(
        self,
        image_features: Tensor,
        text_features: Tensor,
        owner: Tensor | None = None,
        tokens: Tensor | None = None,
        *,
        pictures: Tensor | None = None,
        languages: Tensor | None = None,
    ) -> None:
        """Add one batch.

        :param image_features: ``(B, D)``, any float type and device.
        :param text_features: ``(M, D)``.
        :param owner: image of each text within the batch, integers ``(M,)`` in
            0..B-1; None: text i belongs to image i.
        :param tokens: what tells the texts apart, ``(M, L)``: marks
            (``caption_key``) or token ids; L may differ between batches. None: all
            texts count as different.
        :param pictures: what tells the pictures apart, ``(B, L)``; None: all
            count as different.
        :param languages: codes of the images' languages, ``(B,)``.
        :raises ValueError: if the shapes do not fit, or some batches come with
            one of these and others without.
        """
        num_images, num_texts = image_features.shape[0], text_features.shape[0]
        if owner is None:
            owner = torch.arange(num_images)
        wanted = f"the image of each text, of {num_images} images in this batch"
        require_array(owner, "owner", f"{num_texts}", "integer", give=wanted)
        require_indices(owner, num_images, "owner")
        owner = owner.detach().cpu().long()
        if languages is not None:
            require_length(languages, num_images, "languages", "image")
            languages = languages.cpu()[owner]
        for what, rows, size in (
            ("token ids", tokens, num_texts),
            ("marks of pictures", pictures, num_images),
            ("languages", languages, num_texts),
        ):
            if self._num_images and (rows is None) != (what not in self._kept):
                raise ValueError(
                    f"{what} given for some batches only; give all or none."
                )
            if rows is not None:
                require_length(rows, size, what, "feature")
                self._keep(what, rows.detach().cpu())
        self._keep("images", self._stored(image_features))
        self._keep("texts", self._stored(text_features))
        self._keep("owners", owner + self._num_images)
        self._num_images += num_images

    def _keep(self, what: str, rows: Tensor) -> None:
        self._kept.setdefault(what, []).append(rows)

    def _stored(self, features: Tensor) -> Tensor:
        # a copy, because a batch may be a view of a buffer that is used again
        return features.detach().to(self.device, torch.float32, copy=True)

    def collect(self, features: Any, batch: Any, pad_id: int) -> None:
        """Add the features of a batch of our collate, with its marks.

        :param features: output of a dual encoder.
        :param batch: what it was computed from.
        :param pad_id: of the model's tokenizer.
        """
        self._pad_id = pad_id
        marks = batch.get("caption_key", batch.get("text"))
        self.update(
            features.image_features,
            features.text_features,
            batch.get("owner"),
            marks if isinstance(marks, Tensor) else None,
            pictures=batch.get("image_key"),
            languages=batch.get("language"),
        )

    def bank(self) -> FeatureBank:
        """Return everything added since the last reset, on the CPU."""
        kept = self._kept
        images = torch.cat(kept["images"]).cpu()
        texts = torch.cat(kept["texts"]).cpu()
        owner = torch.cat(kept["owners"])
        if self.deduplicate:
            spoken = kept.get("languages")
            shown, said, owner = merge_equal_pairs(
                owner,
                len(images),
                pictures=kept.get("marks of pictures"),
                captions=kept.get("token ids"),
                languages=None if spoken is None else torch.cat(spoken),
                pad_id=self._pad_id,
            )
            images, texts = images[shown], texts[said]
        return FeatureBank(images, texts, owner)

    def result(self) -> dict[str, float]:
        """Return the metrics of everything added since the last reset.

        :return: the values of :func:`retrieval_metrics`; empty if nothing was
            added.
        """
        if not self._kept:
            return {}
        bank = self.bank()
        sizes = len(bank.image_features), len(bank.text_features)
        self.chance = guessed_recalls(bank.owner, *sizes, self.ks)
        return retrieval_metrics(*bank, ks=self.ks, **self.ranking)

    def state_dict(self) -> dict[str, Any]:
        """Return the values of the last evaluated streams as plain data."""
        return {"stream_results": copy.deepcopy(self.stream_results)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        An evaluation that was interrupted starts anew, so the features
        collected so far are dropped.

        :param state: plain data.
        """
        self.stream_results = copy.deepcopy(state["stream_results"])
        self.reset()

    def before_eval(self, strategy: Any) -> None:
        """Start a new evaluation."""
        self.stream_results = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Start a new test experience."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Collect the features of one batch."""
        pad_id = bare_model(strategy).tokenizer.pad_id
        self.collect(strategy.mb_features, strategy.mb_x, pad_id)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Rank everything collected and emit the values of the experience."""
        values = self.result()
        self.reset()
        if not values:
            return []
        experience = strategy.experience
        rows = self.stream_results.setdefault(experience.origin_stream.name, {})
        rows[int(experience.current_experience)] = values
        return metric_values(self, strategy, values)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the means over the experiences of each evaluated stream."""
        if not self.stream:
            return []
        means = {
            f"{name}/eval_phase/{stream}_stream": (
                sum(row[name] for row in rows.values()) / len(rows)
            )
            for stream, rows in self.stream_results.items()
            for name in next(iter(rows.values()))
        }
        return metric_values(self, strategy, means, str)

    def __str__(self) -> str:
        return "Retrieval"


def retrieval_plugin_metrics(
    *, summary: Sequence[str] = (), **options: Any
) -> list[PluginMetric]:
    """Return the retrieval metrics to hand to an ``EvaluationPlugin``.

    :param summary: values, for example ``("mean_R@1",)``, whose matrix over
        the run is summarised after each evaluation by a
        :class:`ContinualSummary`.
    :param options: those of :class:`RetrievalMetric`: ``ks``, ``ties``,
        ``tie_eps``, ``chunk_size``, ``deduplicate`` and ``stream``.
    :return: one :class:`RetrievalMetric`, then the summaries.
    """
    retrieval = RetrievalMetric(**options)
    return [retrieval, *(ContinualSummary(retrieval, key) for key in summary)]
