"""Named strategies: a template plus plugins with the paper's defaults."""

from avalanche_clip.training.supervised.tic import (
    TIC_STRATEGIES,
    ContrastiveEWC,
    ContrastiveLwF,
    CumulativeAll,
    CumulativeAllStar,
    CumulativeEqual,
    CumulativeExp,
    Oracle,
    Patching,
    Restart,
    Sequential,
)

__all__ = [
    "TIC_STRATEGIES",
    "ContrastiveEWC",
    "ContrastiveLwF",
    "CumulativeAll",
    "CumulativeAllStar",
    "CumulativeEqual",
    "CumulativeExp",
    "Oracle",
    "Patching",
    "Restart",
    "Sequential",
]
