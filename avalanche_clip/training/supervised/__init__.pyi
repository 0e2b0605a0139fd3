# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.training.methods.c_clip import (
    CCLIP as CCLIP,
)
from avalanche_clip.training.methods.cll_clip.strategy import (
    CLLCLIP as CLLCLIP,
    CLL_VARIANTS as CLL_VARIANTS,
)
from avalanche_clip.training.methods.coleclip.strategy import (
    COLECLIP_EPOCHS as COLECLIP_EPOCHS,
    CoLeCLIP as CoLeCLIP,
)
from avalanche_clip.training.methods.continual_clip import (
    ContinualCLIP as ContinualCLIP,
)
from avalanche_clip.training.methods.joint import (
    ClassNameJoint as ClassNameJoint,
    Joint as Joint,
)
from avalanche_clip.training.methods.lora import (
    ClassNameLoRA as ClassNameLoRA,
    LoRA as LoRA,
)
from avalanche_clip.training.methods.mod_x import (
    ModX as ModX,
)
from avalanche_clip.training.methods.moe_adapters.strategy import (
    CLASS_INCREMENTAL as CLASS_INCREMENTAL,
    MTIL_RATES as MTIL_RATES,
    MoEAdapters as MoEAdapters,
)
from avalanche_clip.training.methods.mtil_training import (
    ClassNameFineTuning as ClassNameFineTuning,
    FineTuning as FineTuning,
)
from avalanche_clip.training.methods.sit import (
    SIT as SIT,
)
from avalanche_clip.training.methods.tic import (
    ContrastiveEWC as ContrastiveEWC,
    ContrastiveLwF as ContrastiveLwF,
    CumulativeAll as CumulativeAll,
    CumulativeAllStar as CumulativeAllStar,
    CumulativeEqual as CumulativeEqual,
    CumulativeExp as CumulativeExp,
    Oracle as Oracle,
    Patching as Patching,
    Restart as Restart,
    Sequential as Sequential,
    TIC_STRATEGIES as TIC_STRATEGIES,
)
from avalanche_clip.training.methods.tic_presets import (
    TIC_PRESETS as TIC_PRESETS,
)
from avalanche_clip.training.methods.vr_lwf.plugin import (
    VRLwF as VRLwF,
)
from avalanche_clip.training.methods.zscl.strategy import (
    ClassNameZSCL as ClassNameZSCL,
    ZSCL as ZSCL,
    ZSCL_CLASS_INCREMENTAL as ZSCL_CLASS_INCREMENTAL,
    zscl_variants as zscl_variants,
)
