"""Named strategies: a template plus plugins with the paper's defaults."""

from avalanche_clip.training.supervised.cll_clip import CLL_VARIANTS, CLLCLIP
from avalanche_clip.training.supervised.mod_x import ModX
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
from avalanche_clip.training.supervised.vr_lwf import VRLwF
from avalanche_clip.training.supervised.zscl import (
    ZSCL,
    FineTuning,
    zscl_variants,
)

__all__ = [
    "CLLCLIP",
    "CLL_VARIANTS",
    "TIC_STRATEGIES",
    "ZSCL",
    "ContrastiveEWC",
    "ContrastiveLwF",
    "CumulativeAll",
    "CumulativeAllStar",
    "CumulativeEqual",
    "CumulativeExp",
    "FineTuning",
    "ModX",
    "Oracle",
    "Patching",
    "Restart",
    "Sequential",
    "VRLwF",
    "zscl_variants",
]
