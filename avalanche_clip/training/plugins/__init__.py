"""Methods as plugins, one per file."""

from avalanche_clip.training.plugins.best_epoch import BestEpochPlugin
from avalanche_clip.training.plugins.checkpoint import (
    CheckpointPlugin,
    latest_checkpoint,
)
from avalanche_clip.training.plugins.constant_cosine import ConstantCosinePlugin
from avalanche_clip.training.plugins.contrastive_ewc import ContrastiveEWCPlugin
from avalanche_clip.training.plugins.contrastive_lwf import ContrastiveLwFPlugin
from avalanche_clip.training.plugins.language_adapter import LanguageAdapterPlugin
from avalanche_clip.training.plugins.moe_adapters import MoEAdaptersPlugin
from avalanche_clip.training.plugins.off_diagonal_alignment import (
    OffDiagonalAlignmentPlugin,
)
from avalanche_clip.training.plugins.online_ewc import OnlineEWCPlugin
from avalanche_clip.training.plugins.patching import PatchingPlugin
from avalanche_clip.training.plugins.progress import ProgressPlugin
from avalanche_clip.training.plugins.reference_distillation import (
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.plugins.replay import BudgetedReplayPlugin
from avalanche_clip.training.plugins.reservoir_replay import ReservoirReplayPlugin
from avalanche_clip.training.plugins.restart import BudgetFactorPlugin, RestartPlugin
from avalanche_clip.training.plugins.token_embedding_expansion import (
    TokenEmbeddingExpansionPlugin,
)
from avalanche_clip.training.plugins.vocabulary_replay import VocabularyReplayPlugin
from avalanche_clip.training.plugins.weight_averaging import WeightAveragingPlugin
from avalanche_clip.training.plugins.weight_consolidation import (
    WeightConsolidationPlugin,
)

__all__ = [
    "BestEpochPlugin",
    "BudgetFactorPlugin",
    "BudgetedReplayPlugin",
    "CheckpointPlugin",
    "ConstantCosinePlugin",
    "ContrastiveEWCPlugin",
    "ContrastiveLwFPlugin",
    "FrozenLogitScalePlugin",
    "MoEAdaptersPlugin",
    "LanguageAdapterPlugin",
    "OffDiagonalAlignmentPlugin",
    "OnlineEWCPlugin",
    "PatchingPlugin",
    "ProgressPlugin",
    "ReferenceDistillationPlugin",
    "ReservoirReplayPlugin",
    "RestartPlugin",
    "TokenEmbeddingExpansionPlugin",
    "VocabularyReplayPlugin",
    "WeightAveragingPlugin",
    "WeightConsolidationPlugin",
    "latest_checkpoint",
]
