# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.training.methods.best_epoch import (
    BestEpochPlugin as BestEpochPlugin,
)
from avalanche_clip.training.methods.budgeted_replay import (
    BudgetedReplayPlugin as BudgetedReplayPlugin,
)
from avalanche_clip.training.methods.c_clip import (
    ContrastiveKnowledgeConsolidationPlugin as ContrastiveKnowledgeConsolidationPlugin,
)
from avalanche_clip.training.methods.cll_clip.expansion import (
    TokenEmbeddingExpansionPlugin as TokenEmbeddingExpansionPlugin,
)
from avalanche_clip.training.methods.coleclip.plugin import (
    CoLeCLIPPlugin as CoLeCLIPPlugin,
)
from avalanche_clip.training.methods.constant_cosine import (
    ConstantCosinePlugin as ConstantCosinePlugin,
)
from avalanche_clip.training.methods.early_stopping import (
    EarlyStopping as EarlyStopping,
)
from avalanche_clip.training.methods.ewc import (
    ContrastiveEWCPlugin as ContrastiveEWCPlugin,
    OnlineEWCPlugin as OnlineEWCPlugin,
)
from avalanche_clip.training.methods.language_adapters import (
    LanguageAdapterPlugin as LanguageAdapterPlugin,
)
from avalanche_clip.training.methods.lora import (
    LoRAPlugin as LoRAPlugin,
)
from avalanche_clip.training.methods.lwf import (
    ContrastiveLwFPlugin as ContrastiveLwFPlugin,
)
from avalanche_clip.training.methods.mod_x import (
    OffDiagonalAlignmentPlugin as OffDiagonalAlignmentPlugin,
)
from avalanche_clip.training.methods.moe_adapters.plugin import (
    MoEAdaptersPlugin as MoEAdaptersPlugin,
)
from avalanche_clip.training.methods.patching import (
    PatchingPlugin as PatchingPlugin,
)
from avalanche_clip.training.methods.reservoir_replay import (
    ReservoirReplayPlugin as ReservoirReplayPlugin,
)
from avalanche_clip.training.methods.restart import (
    BudgetFactorPlugin as BudgetFactorPlugin,
    RestartPlugin as RestartPlugin,
)
from avalanche_clip.training.methods.vr_lwf.plugin import (
    VocabularyReplayPlugin as VocabularyReplayPlugin,
)
from avalanche_clip.training.methods.weight_averaging import (
    WeightAveragingPlugin as WeightAveragingPlugin,
)
from avalanche_clip.training.methods.weight_consolidation import (
    WeightConsolidationPlugin as WeightConsolidationPlugin,
)
from avalanche_clip.training.methods.zscl.distillation import (
    ReferenceDistillationPlugin as ReferenceDistillationPlugin,
)
from avalanche_clip.training.runs.checkpoint_plugin import (
    CheckpointPlugin as CheckpointPlugin,
    latest_checkpoint as latest_checkpoint,
)
from avalanche_clip.training.runs.progress import (
    ProgressPlugin as ProgressPlugin,
)
from avalanche_clip.training.templates.distillation import (
    FrozenLogitScalePlugin as FrozenLogitScalePlugin,
)
