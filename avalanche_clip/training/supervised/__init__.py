"""Named strategies: a template plus plugins with the paper's defaults."""

from avalanche_clip.training.supervised.cll_clip import CLL_VARIANTS, CLLCLIP
from avalanche_clip.training.supervised.mod_x import ModX
from avalanche_clip.training.supervised.moe_adapters import (
    CLASS_INCREMENTAL,
    MTIL_RATES,
    MoEAdapters,
)
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
    ZSCL_CLASS_INCREMENTAL,
    ClassNameFineTuning,
    ClassNameZSCL,
    FineTuning,
    zscl_variants,
)

__all__ = [
    "CLASS_INCREMENTAL",
    "MTIL_RATES",
    "CLLCLIP",
    "CLL_VARIANTS",
    "TIC_STRATEGIES",
    "ZSCL",
    "ZSCL_CLASS_INCREMENTAL",
    "ClassNameFineTuning",
    "ClassNameZSCL",
    "ContrastiveEWC",
    "ContrastiveLwF",
    "CumulativeAll",
    "CumulativeAllStar",
    "CumulativeEqual",
    "CumulativeExp",
    "FineTuning",
    "ModX",
    "MoEAdapters",
    "Oracle",
    "Patching",
    "Restart",
    "Sequential",
    "VRLwF",
    "zscl_variants",
]
