# Written by tools/write_faces.py from avalanche_clip/_exports.py.
__version__: str
from avalanche_clip import benchmarks as benchmarks
from avalanche_clip import budget as budget
from avalanche_clip import checkpointing as checkpointing
from avalanche_clip import distributed as distributed
from avalanche_clip import evaluation as evaluation
from avalanche_clip import losses as losses
from avalanche_clip import models as models
from avalanche_clip import training as training
from avalanche_clip.benchmarks.classic.held_out_icons import (
    held_out_icons as held_out_icons,
)
from avalanche_clip.benchmarks.classic.multi_domain_emoji import (
    multi_domain_emoji as multi_domain_emoji,
)
from avalanche_clip.benchmarks.classic.multilingual_emoji import (
    multilingual_emoji as multilingual_emoji,
)
from avalanche_clip.benchmarks.classic.si_blurry import (
    si_blurry_emoji as si_blurry_emoji,
)
from avalanche_clip.benchmarks.classic.tic_clip import (
    tic_datacomp as tic_datacomp,
    tic_redcaps as tic_redcaps,
    tic_yfcc as tic_yfcc,
)
from avalanche_clip.benchmarks.classic.tic_emoji import (
    tic_emoji as tic_emoji,
)
from avalanche_clip.benchmarks.datasets.emoji_mirb import (
    emoji_mirb as emoji_mirb,
)
from avalanche_clip.benchmarks.datasets.web.uids import (
    pair_to_uid as pair_to_uid,
    read_uid_list as read_uid_list,
    uid_to_pair as uid_to_pair,
    write_uid_list as write_uid_list,
)
from avalanche_clip.benchmarks.items.batch import (
    ImageTextBatch as ImageTextBatch,
)
from avalanche_clip.benchmarks.items.class_prompts import (
    ClassPrompts as ClassPrompts,
)
from avalanche_clip.benchmarks.items.items import (
    make_image_text_dataset as make_image_text_dataset,
)
from avalanche_clip.benchmarks.items.prepare import (
    prepare_benchmark as prepare_benchmark,
)
from avalanche_clip.benchmarks.streams.classes import (
    class_incremental_benchmark as class_incremental_benchmark,
    multi_domain_benchmark as multi_domain_benchmark,
)
from avalanche_clip.benchmarks.streams.languages import (
    multilingual_benchmark as multilingual_benchmark,
)
from avalanche_clip.benchmarks.streams.merged import (
    merge_experiences as merge_experiences,
)
from avalanche_clip.benchmarks.streams.quotas import (
    replay_quotas as replay_quotas,
)
from avalanche_clip.benchmarks.streams.si_blurry import (
    si_blurry_benchmark as si_blurry_benchmark,
    si_blurry_indices as si_blurry_indices,
)
from avalanche_clip.benchmarks.streams.splits import (
    split_online as split_online,
    split_validation as split_validation,
)
from avalanche_clip.benchmarks.streams.timed import (
    time_stamped_benchmark as time_stamped_benchmark,
)
from avalanche_clip.budget import (
    ComputeBudget as ComputeBudget,
)
from avalanche_clip.common.files import (
    file_limits as file_limits,
)
from avalanche_clip.evaluation.functional.blind_pairs import (
    clip_blind_pairs as clip_blind_pairs,
)
from avalanche_clip.evaluation.functional.classification import (
    classification_metrics as classification_metrics,
)
from avalanche_clip.evaluation.functional.disorder import (
    spatial_disorder as spatial_disorder,
)
from avalanche_clip.evaluation.functional.forgetting import (
    recall_forgetting as recall_forgetting,
)
from avalanche_clip.evaluation.functional.online import (
    online_accuracy as online_accuracy,
)
from avalanche_clip.evaluation.functional.pairs import (
    pair_metrics as pair_metrics,
)
from avalanche_clip.evaluation.functional.retrieval import (
    retrieval_metrics as retrieval_metrics,
)
from avalanche_clip.evaluation.functional.transfer import (
    continual_summary as continual_summary,
    fold_columns as fold_columns,
    incremental_accuracy as incremental_accuracy,
    seen_unseen_harmonic as seen_unseen_harmonic,
    time_transfer as time_transfer,
    transfer_average_last as transfer_average_last,
    transfer_per_task as transfer_per_task,
)
from avalanche_clip.evaluation.loggers import (
    MetricsCSVLogger as MetricsCSVLogger,
)
from avalanche_clip.evaluation.metrics.blind_pairs import (
    BlindPairsMetric as BlindPairsMetric,
)
from avalanche_clip.evaluation.metrics.disorder import (
    spatial_disorder_metrics as spatial_disorder_metrics,
)
from avalanche_clip.evaluation.metrics.label_spaces import (
    label_space_metrics as label_space_metrics,
)
from avalanche_clip.evaluation.metrics.loss_terms import (
    loss_term_metrics as loss_term_metrics,
)
from avalanche_clip.evaluation.metrics.retrieval import (
    retrieval_plugin_metrics as retrieval_plugin_metrics,
)
from avalanche_clip.evaluation.suites.blind_pairs import (
    BlindPairsSuite as BlindPairsSuite,
)
from avalanche_clip.evaluation.suites.mirb import (
    MIRBSuite as MIRBSuite,
    mirb as mirb,
)
from avalanche_clip.evaluation.suites.mmvp import (
    mmvp as mmvp,
)
from avalanche_clip.evaluation.suites.mmvp_vlm import (
    MMVPVLMSuite as MMVPVLMSuite,
    mmvp_vlm as mmvp_vlm,
)
from avalanche_clip.evaluation.suites.suite import (
    Suite as Suite,
)
from avalanche_clip.evaluation.suites.tasks import (
    ZeroShotTask as ZeroShotTask,
)
from avalanche_clip.evaluation.suites.zero_shot import (
    ZeroShotSuite as ZeroShotSuite,
)
from avalanche_clip.losses.contrastive import (
    contrastive_loss as contrastive_loss,
)
from avalanche_clip.losses.cross_lingual import (
    cross_lingual_loss as cross_lingual_loss,
    cross_modal_loss as cross_modal_loss,
)
from avalanche_clip.losses.off_diagonal_alignment import (
    off_diagonal_alignment_loss as off_diagonal_alignment_loss,
)
from avalanche_clip.losses.siglip import (
    siglip_loss as siglip_loss,
)
from avalanche_clip.losses.similarity_distillation import (
    similarity_distillation_loss as similarity_distillation_loss,
)
from avalanche_clip.losses.temperature_distillation import (
    temperature_distillation_loss as temperature_distillation_loss,
)
from avalanche_clip.models.encoders.dual_encoder import (
    DualEncoder as DualEncoder,
)
from avalanche_clip.models.encoders.mixture_of_features import (
    MixtureOfFeatures as MixtureOfFeatures,
)
from avalanche_clip.models.encoders.output import (
    CLIPOutput as CLIPOutput,
)
from avalanche_clip.models.encoders.positions import (
    load_tower as load_tower,
    resize_dual_encoder as resize_dual_encoder,
)
from avalanche_clip.models.export.export import (
    export_model as export_model,
)
from avalanche_clip.models.moe.adapters import (
    attach_moe_adapters as attach_moe_adapters,
    load_moe_adapters as load_moe_adapters,
)
from avalanche_clip.models.moe.gating import (
    noisy_top_k_gates as noisy_top_k_gates,
)
from avalanche_clip.models.moe.mixture import (
    MoEAdapter as MoEAdapter,
)
from avalanche_clip.models.peft.adapter import (
    attach_adapters as attach_adapters,
)
from avalanche_clip.models.peft.lora import (
    attach_lora as attach_lora,
)
from avalanche_clip.models.peft.merge import (
    merge_adapters as merge_adapters,
)
from avalanche_clip.models.peft.prompt import (
    attach_prompts as attach_prompts,
)
from avalanche_clip.models.selector.selector import (
    AutoSelector as AutoSelector,
)
from avalanche_clip.models.stored import (
    create_dual_encoder as create_dual_encoder,
)
from avalanche_clip.models.text.growing import (
    GrowingTokenizer as GrowingTokenizer,
)
from avalanche_clip.models.text.teir import (
    teir_init_ as teir_init_,
    teir_scale as teir_scale,
)
from avalanche_clip.models.text.token_table import (
    ExpandableTokenEmbedding as ExpandableTokenEmbedding,
    attach_token_embedding as attach_token_embedding,
)
from avalanche_clip.training.methods.budgeted_replay import (
    BudgetedReplayPlugin as BudgetedReplayPlugin,
)
from avalanche_clip.training.methods.c_clip import (
    CCLIP as CCLIP,
    ContrastiveKnowledgeConsolidationPlugin as ContrastiveKnowledgeConsolidationPlugin,
)
from avalanche_clip.training.methods.cll_clip.expansion import (
    TokenEmbeddingExpansionPlugin as TokenEmbeddingExpansionPlugin,
)
from avalanche_clip.training.methods.cll_clip.strategy import (
    CLLCLIP as CLLCLIP,
)
from avalanche_clip.training.methods.coleclip.plugin import (
    CoLeCLIPPlugin as CoLeCLIPPlugin,
)
from avalanche_clip.training.methods.coleclip.strategy import (
    CoLeCLIP as CoLeCLIP,
)
from avalanche_clip.training.methods.constant_cosine import (
    ConstantCosinePlugin as ConstantCosinePlugin,
)
from avalanche_clip.training.methods.continual_clip import (
    ContinualCLIP as ContinualCLIP,
)
from avalanche_clip.training.methods.early_stopping import (
    EarlyStopping as EarlyStopping,
)
from avalanche_clip.training.methods.ewc import (
    ContrastiveEWCPlugin as ContrastiveEWCPlugin,
)
from avalanche_clip.training.methods.joint import (
    ClassNameJoint as ClassNameJoint,
    Joint as Joint,
)
from avalanche_clip.training.methods.lora import (
    LoRA as LoRA,
    LoRAPlugin as LoRAPlugin,
)
from avalanche_clip.training.methods.lwf import (
    ContrastiveLwFPlugin as ContrastiveLwFPlugin,
)
from avalanche_clip.training.methods.mod_x import (
    ModX as ModX,
    OffDiagonalAlignmentPlugin as OffDiagonalAlignmentPlugin,
)
from avalanche_clip.training.methods.moe_adapters.plugin import (
    MoEAdaptersPlugin as MoEAdaptersPlugin,
)
from avalanche_clip.training.methods.moe_adapters.strategy import (
    MoEAdapters as MoEAdapters,
)
from avalanche_clip.training.methods.patching import (
    PatchingPlugin as PatchingPlugin,
)
from avalanche_clip.training.methods.restart import (
    BudgetFactorPlugin as BudgetFactorPlugin,
    RestartPlugin as RestartPlugin,
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
)
from avalanche_clip.training.methods.vr_lwf.plugin import (
    VRLwF as VRLwF,
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
from avalanche_clip.training.methods.zscl.strategy import (
    ZSCL as ZSCL,
)
from avalanche_clip.training.runs.checkpoint_plugin import (
    CheckpointPlugin as CheckpointPlugin,
)
from avalanche_clip.training.runs.plugin_state import (
    register_plugin_state as register_plugin_state,
)
from avalanche_clip.training.runs.progress import (
    ProgressPlugin as ProgressPlugin,
)
from avalanche_clip.training.runs.result import (
    RunResult as RunResult,
)
from avalanche_clip.training.runs.resume import (
    load_state as load_state,
    save_state as save_state,
)
from avalanche_clip.training.runs.stream import (
    run_stream as run_stream,
)
from avalanche_clip.training.templates.class_name import (
    ClassNameTemplate as ClassNameTemplate,
)
from avalanche_clip.training.templates.clip_template import (
    CLIPTemplate as CLIPTemplate,
)
from avalanche_clip.training.templates.contract import (
    MethodPlugin as MethodPlugin,
)
from avalanche_clip.training.templates.contrastive import (
    ContrastiveTemplate as ContrastiveTemplate,
)
from avalanche_clip.training.templates.optim import (
    layer_wise_rates as layer_wise_rates,
)
