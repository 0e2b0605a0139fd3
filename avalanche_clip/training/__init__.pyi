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
from avalanche_clip.training.methods.early_stopping import (
    EarlyStopping as EarlyStopping,
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
from avalanche_clip.training.runs.result import (
    RunResult as RunResult,
)
from avalanche_clip.training.runs.stream import (
    run_stream as run_stream,
)
from avalanche_clip.training.templates.class_name import (
    ClassNameTemplate as ClassNameTemplate,
    default_class_evaluator as default_class_evaluator,
)
from avalanche_clip.training.templates.clip_template import (
    CLIPTemplate as CLIPTemplate,
    default_clip_evaluator as default_clip_evaluator,
)
from avalanche_clip.training.templates.contract import (
    MethodPlugin as MethodPlugin,
)
from avalanche_clip.training.templates.contrastive import (
    ContrastiveCriterion as ContrastiveCriterion,
    ContrastiveTemplate as ContrastiveTemplate,
)
from avalanche_clip.training.templates.optim import (
    layer_wise_rates as layer_wise_rates,
)
from avalanche_clip.training.templates.step import (
    NonFiniteLossError as NonFiniteLossError,
)
