"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.evaluation.report import results as report


@dataclass(frozen=True)
class RunResult:
    """What a run found.

    ``matrices[stream][metric]["E"][i, j]`` is the value after training step
    ``steps[i]`` (by default ``i``) on experience ``j`` of the stream,
    ``...["before"][j]`` that of the model before the stream.
    """

    method: str
    out_dir: Path
    matrices: dict[str, dict[str, dict[str, np.ndarray]]]
    summary: dict[str, Any]
    compute: dict[str, Any]
    results: dict[str, Any] = field(repr=False)

    @property
    def steps(self) -> list[int]:
        """Index of the training step behind each row of ``E``."""
        return list(self.results["evaluations"]["steps"])

    @property
    def E(self) -> np.ndarray:
        """Main metric at each evaluation point on each experience of stream 1.

        Mean R@1, or the accuracy of strategies on class names.
        """
        return self._main()["E"]

    @property
    def before(self) -> np.ndarray:
        """Main metric of the model before the stream."""
        return self._main()["before"]

    def _main(self) -> dict[str, np.ndarray]:
        metrics = next(iter(self.matrices.values()))
        return metrics[report.main_metric(metrics)]

    def matrix(self, metric: str, stream: str | None = None) -> np.ndarray:
        """Matrix ``E`` of any metric.

        :param metric: for example ``"image_to_text_R@1"``.
        :param stream: default the first evaluated stream.
        """
        name = stream or next(iter(self.matrices))
        return self.matrices[name][metric]["E"]
