"""Continual learning of CLIP-like image-text models, built on Avalanche.

The package root is lazy: importing it loads no other library, and each public
name is imported from its subpackage on first use.

>>> import avalanche_clip
>>> avalanche_clip.__version__
'0.1.0'
"""

from avalanche_clip._lazy import lazy_names

__version__ = "0.1.0"

# Public name -> subpackage that exports it.
_PUBLIC: dict[str, str] = {
    # losses
    "contrastive_loss": "avalanche_clip.losses",
    "off_diagonal_alignment_loss": "avalanche_clip.losses",
    "cross_lingual_loss": "avalanche_clip.losses",
    "cross_modal_loss": "avalanche_clip.losses",
    "siglip_loss": "avalanche_clip.losses",
    "similarity_distillation_loss": "avalanche_clip.losses",
    "temperature_distillation_loss": "avalanche_clip.losses",
    # evaluation.functional
    "classification_metrics": "avalanche_clip.evaluation.functional",
    "continual_summary": "avalanche_clip.evaluation.functional",
    "fold_columns": "avalanche_clip.evaluation.functional",
    "pair_metrics": "avalanche_clip.evaluation.functional",
    "recall_forgetting": "avalanche_clip.evaluation.functional",
    "retrieval_metrics": "avalanche_clip.evaluation.functional",
    "spatial_disorder": "avalanche_clip.evaluation.functional",
    "time_transfer": "avalanche_clip.evaluation.functional",
    "incremental_accuracy": "avalanche_clip.evaluation.functional",
    "seen_unseen_harmonic": "avalanche_clip.evaluation.functional",
    "transfer_average_last": "avalanche_clip.evaluation.functional",
    "transfer_per_task": "avalanche_clip.evaluation.functional",
    # models
    "AutoSelector": "avalanche_clip.models",
    "CLIPOutput": "avalanche_clip.models",
    "DualEncoder": "avalanche_clip.models",
    "MoEAdapter": "avalanche_clip.models",
    "attach_moe_adapters": "avalanche_clip.models",
    "create_dual_encoder": "avalanche_clip.models",
    "load_moe_adapters": "avalanche_clip.models",
    "noisy_top_k_gates": "avalanche_clip.models",
    "ExpandableTokenEmbedding": "avalanche_clip.models",
    "GrowingTokenizer": "avalanche_clip.models",
    "attach_token_embedding": "avalanche_clip.models",
    "teir_init_": "avalanche_clip.models",
    "teir_scale": "avalanche_clip.models",
    # benchmarks
    "ClassPrompts": "avalanche_clip.benchmarks",
    "ImageTextBatch": "avalanche_clip.benchmarks",
    "class_incremental_benchmark": "avalanche_clip.benchmarks",
    "make_image_text_dataset": "avalanche_clip.benchmarks",
    "multi_domain_benchmark": "avalanche_clip.benchmarks",
    "multi_domain_emoji": "avalanche_clip.benchmarks",
    "multilingual_benchmark": "avalanche_clip.benchmarks",
    "multilingual_emoji": "avalanche_clip.benchmarks",
    "prepare_benchmark": "avalanche_clip.benchmarks",
    "replay_quotas": "avalanche_clip.benchmarks",
    "split_online": "avalanche_clip.benchmarks",
    "split_validation": "avalanche_clip.benchmarks",
    "tic_emoji": "avalanche_clip.benchmarks",
    "time_stamped_benchmark": "avalanche_clip.benchmarks",
    # training
    "CLIPTemplate": "avalanche_clip.training",
    "ClassNameTemplate": "avalanche_clip.training",
    "ContrastiveTemplate": "avalanche_clip.training",
    "MethodPlugin": "avalanche_clip.training",
    "RunResult": "avalanche_clip.training",
    "run_stream": "avalanche_clip.training",
    "CLLCLIP": "avalanche_clip.training",
    "ContrastiveEWC": "avalanche_clip.training",
    "ContrastiveLwF": "avalanche_clip.training",
    "CumulativeAll": "avalanche_clip.training",
    "CumulativeAllStar": "avalanche_clip.training",
    "CumulativeEqual": "avalanche_clip.training",
    "CumulativeExp": "avalanche_clip.training",
    "ModX": "avalanche_clip.training",
    "MoEAdapters": "avalanche_clip.training",
    "Oracle": "avalanche_clip.training",
    "Patching": "avalanche_clip.training",
    "Restart": "avalanche_clip.training",
    "Sequential": "avalanche_clip.training",
    "VRLwF": "avalanche_clip.training",
    "ZSCL": "avalanche_clip.training",
    "BudgetFactorPlugin": "avalanche_clip.training.plugins",
    "BudgetedReplayPlugin": "avalanche_clip.training.plugins",
    "CheckpointPlugin": "avalanche_clip.training.plugins",
    "ConstantCosinePlugin": "avalanche_clip.training.plugins",
    "ContrastiveEWCPlugin": "avalanche_clip.training.plugins",
    "ContrastiveLwFPlugin": "avalanche_clip.training.plugins",
    "MoEAdaptersPlugin": "avalanche_clip.training.plugins",
    "OffDiagonalAlignmentPlugin": "avalanche_clip.training.plugins",
    "PatchingPlugin": "avalanche_clip.training.plugins",
    "ProgressPlugin": "avalanche_clip.training.plugins",
    "ReferenceDistillationPlugin": "avalanche_clip.training.plugins",
    "RestartPlugin": "avalanche_clip.training.plugins",
    "TokenEmbeddingExpansionPlugin": "avalanche_clip.training.plugins",
    "VocabularyReplayPlugin": "avalanche_clip.training.plugins",
    "WeightAveragingPlugin": "avalanche_clip.training.plugins",
    "WeightConsolidationPlugin": "avalanche_clip.training.plugins",
    # files
    "file_limits": "avalanche_clip._files",
    # runs
    "ComputeBudget": "avalanche_clip.budget",
    "load_state": "avalanche_clip.checkpointing",
    "register_plugin_state": "avalanche_clip.checkpointing",
    "save_state": "avalanche_clip.checkpointing",
    # evaluation.loggers, evaluation.metrics
    "MetricsCSVLogger": "avalanche_clip.evaluation.loggers",
    "loss_term_metrics": "avalanche_clip.evaluation.metrics",
    "retrieval_plugin_metrics": "avalanche_clip.evaluation.metrics",
    "spatial_disorder_metrics": "avalanche_clip.evaluation.metrics",
}

_SUBPACKAGES = (
    "benchmarks",
    "budget",
    "checkpointing",
    "distributed",
    "evaluation",
    "losses",
    "models",
    "training",
)

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC, _SUBPACKAGES)

__all__ = ["__version__", *_PUBLIC]
