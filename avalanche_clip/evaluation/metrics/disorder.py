"""Spatial disorder of a continual run, measured on a fixed probe set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avalanche_clip.common.checks import require_known, require_same
from avalanche_clip.evaluation.functional import rotation_angles, spatial_disorder
from avalanche_clip.evaluation.metrics._probe import Probe, Snapshot
from avalanche_clip.evaluation.metrics._values import bare_model, metric_values

REFERENCES = ("initial", "previous")

Curves = dict[str, dict[str, list[float]]]


class SpatialDisorderMetric(PluginMetric[Curves]):
    """Follow how the features of a fixed set of pairs turn over the stream.

    The pairs are embedded before the first training experience and after each
    one, in evaluation mode, without gradients and in full precision, whatever
    precision the run trains in. Neither weights nor random generators nor
    modes change, so a run with this metric trains like one without it. Growth
    of the model at the start of the first experience counts as a change.

    After each experience the scalars of :func:`spatial_disorder` are emitted
    against two references, ``initial`` (before the stream) and ``previous``
    (before this experience), named
    ``SpatialDisorder/initial/imd_mean/train_phase/train_stream``; and the
    rotation angles of all samples, named
    ``SpatialDisorder/initial/image_rotation/...``, which TensorBoard and W&B
    show as histograms. Values that are not defined (NaN) are kept, not emitted.

    ``rows`` holds everything measured, one dict per experience and reference
    with the keys ``experience``, ``trained`` (number of experiences so far),
    ``iteration``, ``reference`` and the scalars. ``snapshots`` maps the number
    of trained experiences to the features: the first and the newest.

    Cost: one pass over the probe per experience, ``8 * N * D`` bytes per
    snapshot (1,000 pairs of 512: 4 MB), in checkpoints too. All processes of a
    distributed run compute the same.

    :param probe: prepared image-text data, for example
        ``benchmark.test_stream[0].dataset``. The evaluation transforms and the
        first caption of each image are used.
    :param max_pairs: largest number of pairs; of larger data every k-th.
    :param batch_size: pairs per forward pass.
    :param num_workers: processes that read the probe.
    :param name: first part of the emitted names. Two of these metrics in one
        evaluator need different ones.
    :param keys: names of the scalars to emit; None for all. ``rows`` has all.
    :param histograms: whether to emit the rotation angles.
    :raises ValueError: if the probe is not prepared or empty, or an option is
        out of range.
    """

    in_results = True
    """Whether :func:`run_stream` writes :meth:`result` into ``results.json``."""

    def __init__(
        self,
        probe: Any,
        *,
        max_pairs: int = 1000,
        batch_size: int = 128,
        num_workers: int = 0,
        name: str = "SpatialDisorder",
        keys: Sequence[str] | None = None,
        histograms: bool = True,
    ) -> None:
        super().__init__()
        require_known(keys or (), spatial_disorder(*[torch.ones(1, 1)] * 4), "keys")
        if not name or "/" in name:
            raise ValueError(f"name={name!r} must be a word without '/'.")
        self.probe = Probe(
            probe, max_pairs=max_pairs, batch_size=batch_size, num_workers=num_workers
        )
        self.name = name
        self.keys = None if keys is None else tuple(keys)
        self.histograms = histograms
        self.reset()

    def reset(self) -> None:
        """Forget all snapshots and results; the next training starts anew."""
        self.snapshots: dict[int, Snapshot] = {}
        self.rows: list[dict[str, Any]] = []

    def result(self) -> Curves:
        """Return the scalars over the experiences.

        :return: reference -> name -> one value per measured experience; also
            ``experience``, ``trained`` and ``iteration``.
        """
        curves: Curves = {}
        for row in self.rows:
            curve = curves.setdefault(row["reference"], {})
            for key, value in row.items():
                if key != "reference":
                    curve.setdefault(key, []).append(value)
        return curves

    def state_dict(self) -> dict[str, Any]:
        """Return snapshots and results as plain data."""
        return {
            "pairs": len(self.probe),
            "snapshots": {k: tuple(s) for k, s in self.snapshots.items()},
            "rows": [dict(row) for row in self.rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        :param state: plain data.
        :raises ValueError: if the probe had another number of pairs.
        """
        do = "resume with the same probe and max_pairs"
        require_same("number of pairs", state["pairs"], len(self.probe), do)
        self.snapshots = {
            int(trained): Snapshot(*(part.cpu() for part in parts))
            for trained, parts in state["snapshots"].items()
        }
        self.rows = [dict(row) for row in state["rows"]]

    def before_training(self, strategy: Any) -> None:
        """Embed the probe with the model before the stream, once."""
        self._check_names(strategy)
        if not self.snapshots:
            self.snapshots[0] = self._embed(strategy)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Embed the probe and emit how it moved."""
        newest = max(self.snapshots)
        now = self._embed(strategy)
        values = []
        for reference, then in zip(
            REFERENCES, (self.snapshots[0], self.snapshots[newest])
        ):
            found = spatial_disorder(*then, *now)
            facts = {
                "experience": int(strategy.experience.current_experience),
                "trained": newest + 1,
                "iteration": int(strategy.clock.train_iterations),
                "reference": reference,
            }
            self.rows.append({**facts, **found})
            named = {
                get_metric_name(
                    f"{self.name}/{reference}/{key}", strategy, add_task=False
                ): value
                for key, value in self._shown(found, then, now).items()
            }
            values += metric_values(self, strategy, named, str)
        if newest:
            del self.snapshots[newest]
        self.snapshots[newest + 1] = now
        return values

    def _embed(self, strategy: Any) -> Snapshot:
        return self.probe.embed(bare_model(strategy), torch.device(strategy.device))

    def _shown(
        self, found: dict[str, float], then: Snapshot, now: Snapshot
    ) -> dict[str, Any]:
        """What is emitted: scalars that are defined, and rotation angles."""
        shown: dict[str, Any] = {
            key: value
            for key, value in found.items()
            if not math.isnan(value) and (self.keys is None or key in self.keys)
        }
        if self.histograms and len(self.probe) > 1:
            for modality, old, new in zip(("image", "text"), then, now):
                angles = rotation_angles(old, new).float()
                shown[f"{modality}_rotation"] = Histogram(angles)
        return shown

    def _check_names(self, strategy: Any) -> None:
        for other in strategy.evaluator.metrics:
            same = isinstance(other, SpatialDisorderMetric) and other.name == self.name
            if same and other is not self:
                raise ValueError(
                    f"Two SpatialDisorderMetrics have name={self.name!r}, so their "
                    "values would overwrite each other; give one another name."
                )

    def __str__(self) -> str:
        return self.name


class Histogram(AlternativeValues):
    """Values that a logger shows as a histogram; as text, only how many.

    Avalanche's text loggers would print a bare tensor number by number.
    """

    def __init__(self, values: Tensor):
        super().__init__(values)
        self.values = values

    def __str__(self) -> str:
        return f"{self.values.numel()} values, mean {self.values.mean():.4f}"


def spatial_disorder_metrics(probe: Any, **options: Any) -> list[PluginMetric]:
    """Return the spatial disorder metric to hand to an ``EvaluationPlugin``.

    :param probe: prepared image-text data.
    :param options: those of :class:`SpatialDisorderMetric`.
    :return: one :class:`SpatialDisorderMetric`.
    """
    return [SpatialDisorderMetric(probe, **options)]
