"""The public names of the package: one row per module that defines some.

A row says in which faces a module's names are shown: ``module = face: names``. A star
shows a name in the package root as well; without a face it is shown there alone. Faces
are the packages and modules that users import from; they hold no code of their own and
load a name on first use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

ROOT = "avalanche_clip"

# A new method is one row, as that of Mod-X.
_TABLE = """
benchmarks.classic.cil = benchmarks.classic: cil_cifar100 cil_imagenet100
    cil_imagenet1k cil_tiny_imagenet
benchmarks.classic.core50 = benchmarks.classic: core50
benchmarks.classic.held_out_icons = benchmarks.classic: held_out_icons*
benchmarks.classic.mtil = benchmarks.classic: mtil x_tail
benchmarks.classic.multi_domain_emoji = benchmarks.classic: multi_domain_emoji*
benchmarks.classic.multilingual_coco36 = benchmarks.classic: multilingual_coco36
benchmarks.classic.multilingual_emoji = benchmarks.classic: emoji_language_dataset
    language_order multilingual_emoji*
benchmarks.classic.si_blurry = benchmarks.classic: SIT_ZERO_SHOT si_blurry
    si_blurry_emoji*
benchmarks.classic.tic_clip = benchmarks.classic: TIC_DATACOMP_STEPS tic_datacomp*
    tic_redcaps* tic_yfcc*
benchmarks.classic.tic_emoji = benchmarks.classic: emoji_dataset tic_emoji*
    tic_emoji_joint
benchmarks.datasets.blind_emoji = benchmarks.datasets: BlindEmoji
benchmarks.datasets.captioned = benchmarks.datasets: CaptionedImages LANGUAGES_36
    missing_images read_annotations read_ground_truth
benchmarks.datasets.coco36 = benchmarks.datasets: COCO36_LANGUAGES Coco36 CocoTriplets
benchmarks.datasets.core50 = benchmarks.datasets: CORE50_NAMES CORE50_TEST_SESSIONS
    Core50 read_core50
benchmarks.datasets.emoji = benchmarks.datasets: EMOJI_LANGUAGES EMOJI_SIZE
    EMOJI_STEPS EMOJI_STYLES EmojiImages EmojiPairs EmojiStep EmojiTable
    load_emoji_table validation_mask
benchmarks.datasets.emoji_mirb = benchmarks.datasets: emoji_mirb* write_emoji_mirb
benchmarks.datasets.fields = benchmarks.datasets: file_time
benchmarks.datasets.icons = benchmarks.datasets: FIRST_ICON_ID HeldOutIcons
benchmarks.datasets.mirb = benchmarks.datasets: MIRBDataset MIRB_CONTROLS
    MIRB_DIMENSIONS MIRB_SUBSETS MultiImageSample
benchmarks.datasets.mmvp = benchmarks.datasets: ImagePair MMVPDataset MMVPQuestion
    MMVPVLMDataset MMVP_PATTERNS
benchmarks.datasets.mtil.coop = benchmarks.datasets: read_coop_split
    read_x_tail_domain; benchmarks.datasets.mtil: CoopSplit read_coop_split
    read_x_tail_domain
benchmarks.datasets.mtil.folders = benchmarks.datasets: read_imagenet
    read_imagenet_r read_tiny_imagenet; benchmarks.datasets.mtil: read_imagenet
    read_imagenet_r read_tiny_imagenet
benchmarks.datasets.mtil.images = benchmarks.datasets: MTILDomain;
    benchmarks.datasets.mtil: ClassImages FolderFiles MTILDomain
benchmarks.datasets.mtil.names = benchmarks.datasets.mtil: given_names prompt_names
benchmarks.datasets.mtil.orders = benchmarks.datasets: MTIL_NAMES;
    benchmarks.datasets.mtil: MTIL_NAMES MTIL_ORDERS ORDER_CHECKSUMS X_TAIL_NAMES
    class_order dataset_name order_checksum
benchmarks.datasets.mtil.readers = benchmarks.datasets: read_mtil_domain;
    benchmarks.datasets.mtil: random_80_20 read_mtil_domain
benchmarks.datasets.mtil.table = benchmarks.datasets.mtil: DATASETS DatasetFacts
benchmarks.datasets.mtil.templates = benchmarks.datasets.mtil: CIL_TEMPLATES
    MTIL_TEMPLATES X_TAIL_TEMPLATES
benchmarks.datasets.parquet = benchmarks.datasets: read_clip_retrieval read_parquet
benchmarks.datasets.row_stream = benchmarks.datasets: RowStream
benchmarks.datasets.rows = benchmarks.datasets: ImageTextRows read_coco_captions
    read_image_table read_karpathy read_rows
benchmarks.datasets.text_columns = benchmarks.datasets: TextColumn read_table
benchmarks.datasets.web.folder = benchmarks.datasets: FolderPairs WebFolder
benchmarks.datasets.web.folder_index = benchmarks.datasets: FolderIndex
benchmarks.datasets.web.pairs = benchmarks.datasets: TarPairs
benchmarks.datasets.web.stream = benchmarks.datasets: ShardStream
benchmarks.datasets.web.tar_index = benchmarks.datasets: TarIndex find_tars
    open_tar_index
benchmarks.datasets.web.tic_lists = benchmarks.datasets: TIC_DATACOMP_MONTHS all_uids
    read_evaluation_uids read_uid_lists
benchmarks.datasets.web.tic_shards = benchmarks.datasets: TicShards
benchmarks.datasets.web.tic_tables = benchmarks.datasets: build_tic_redcaps
    build_tic_yfcc read_pair_table yfcc_caption
benchmarks.datasets.web.uids = benchmarks: pair_to_uid* read_uid_list* uid_to_pair*
    write_uid_list*; benchmarks.datasets: as_uids combine_uid_lists find_uids
benchmarks.datasets.xm3600 = benchmarks.datasets: XM3600 XM3600_CAPTIONS
    XM3600_LANGUAGES
benchmarks.items.batch = benchmarks: FieldCollate ImageTextBatch*
benchmarks.items.class_labels = benchmarks: class_targets few_shot_indices
benchmarks.items.class_prompts = benchmarks: ClassPrompts*
benchmarks.items.facts = benchmarks: with_facts without_images
benchmarks.items.items = benchmarks: CorruptSampleError attribute_array
    find_corrupt_samples make_image_text_dataset*
benchmarks.items.prepare = benchmarks: RandomCaption prepare_benchmark*
benchmarks.items.scenario = benchmarks: make_experience make_scenario
benchmarks.items.skipped = benchmarks: SKIP_CAUSES SampleFault Skipped
benchmarks.streams.classes = benchmarks: Domain class_incremental_benchmark*
    multi_domain_benchmark*
benchmarks.streams.languages = benchmarks: joint_languages multilingual_benchmark*
benchmarks.streams.merged = benchmarks: merge_experiences*
benchmarks.streams.quotas = benchmarks: replay_quotas*
benchmarks.streams.si_blurry = benchmarks: si_blurry_benchmark* si_blurry_indices*
benchmarks.streams.splits = benchmarks: split_online* split_validation*
benchmarks.streams.timed = benchmarks: time_stamped_benchmark*
benchmarks.teacher.precompute = benchmarks: attach_teacher_features
    precompute_teacher_features
benchmarks.teacher.released = benchmarks.datasets: read_feature_pickle read_line_rows
benchmarks.teacher.store = benchmarks: TeacherFeatureStore; benchmarks.datasets:
    TeacherFeatureStore
budget = : ComputeBudget*
common.files = : file_limits*
common.state_files = checkpointing: CheckpointError read_state require_finite
    write_state
evaluation.functional.blind_pairs = evaluation.functional: BlindPair clip_blind_pairs*
evaluation.functional.classification = evaluation.functional: class_ranks
    class_vectors classification_metrics*
evaluation.functional.disorder = evaluation.functional: ROTATION_BINS TOPOLOGY_BINS
    angle_histogram rotation_angles self_angles spatial_disorder* topology_change
evaluation.functional.forgetting = evaluation.functional: forgetting_per_task
    multilingual_summary recall_forgetting* recall_forgetting_curves
evaluation.functional.intervals = evaluation.functional: Interval bootstrap_interval
    resampled_interval wilson_interval
evaluation.functional.online = evaluation.functional: exposed_accuracy
    online_accuracy*
evaluation.functional.pairs = evaluation.functional: pair_metrics* pattern_metrics
evaluation.functional.ranks = evaluation.functional: RetrievalRanks owner_pairs
    retrieval_ranks
evaluation.functional.retrieval = evaluation.functional: retrieval_metrics*
evaluation.functional.short_answers = evaluation.functional: dimension_averages
    prior_baselines short_answer_parsed short_answer_score
evaluation.functional.texts = evaluation.functional: merge_equal_pairs
evaluation.functional.transfer = evaluation.functional: continual_summary*
    fold_columns* incremental_accuracy* seen_unseen_harmonic* seen_unseen_per_step
    time_transfer* transfer_average_last* transfer_per_task*
evaluation.loggers = evaluation: MetricsCSVLogger*
evaluation.metrics.blind_pairs = evaluation.metrics: BlindPairsMetric*
evaluation.metrics.disorder = evaluation.metrics: SpatialDisorderMetric
    spatial_disorder_metrics*
evaluation.metrics.label_spaces = evaluation.metrics: LabelSpaceAccuracy
    label_space_metrics*
evaluation.metrics.loss_terms = evaluation.metrics: LossTermsMetric loss_term_metrics*
evaluation.metrics.retrieval = evaluation.metrics: RetrievalMetric
    retrieval_plugin_metrics*
evaluation.metrics.summary = evaluation.metrics: ContinualSummary
evaluation.suites.blind_pairs = evaluation.suites: BlindPairsSuite*
evaluation.suites.chat = evaluation.suites: ChatModel Turn
evaluation.suites.mirb = evaluation.suites: ChatScorer MIRBResult MIRBSuite* mirb*
    mirb_values
evaluation.suites.mmvp = evaluation.suites: MMVPResult mmvp* mmvp_scores parse_option
evaluation.suites.mmvp_vlm = evaluation.suites: MMVPVLMSuite* mmvp_vlm*
evaluation.suites.multi_image = evaluation.suites: Answer DualEncoderScorer
    MultiImageScorer
evaluation.suites.suite = evaluation.suites: Encoded Suite* SuiteFeatures
    metrics_only require_dual_encoder
evaluation.suites.tasks = evaluation.suites: ZeroShotTask* embedded_tasks
evaluation.suites.zero_shot = evaluation.suites: ZeroShotSuite* datacomp_tasks
evaluation.report.comparison = evaluation.report: text_table write_comparison
evaluation.report.disorder_plots = evaluation.plots: plot_angle_histograms
    plot_disorder
evaluation.report.page = evaluation.report: write_report
evaluation.report.plots = evaluation.plots: Spread plot_budget plot_budget_curve
    plot_comparison plot_matrix plot_over_time save_figure
losses.contrastive = losses: contrastive_loss*
losses.cross_lingual = losses: cross_lingual_loss* cross_modal_loss*
losses.off_diagonal_alignment = losses: off_diagonal_alignment_loss*
losses.siglip = losses: siglip_loss*
losses.similarity_distillation = losses: similarity_distillation_loss*
losses.temperature_distillation = losses: temperature_distillation_loss*
models.encoders.blocks = models: BlockView
models.encoders.dual_encoder = models: DualEncoder*
models.encoders.mixture_of_features = models: MixtureOfFeatures*
models.encoders.output = models: CLIPOutput*
models.encoders.positions = models: load_tower* resize_dual_encoder*
models.encoders.presets = models: PRESETS
models.encoders.rewriting = models: rewrite_file
models.encoders.weights = models: save_weights
models.export.export = models: export_model*
models.images.augmentation = models: TinyAugmentation
models.images.drawing_features = models: drawing_features
models.images.transforms = models: ImageTransform Preprocessing TinyTransform
models.moe.adapters = models: MoEAdapterSet attach_moe_adapters* load_moe_adapters*
models.moe.gating = models: noisy_top_k_gates*
models.moe.mixture = models: MoEAdapter*
models.peft.adapter = models: attach_adapters*
models.peft.attached = models: BranchSet
models.peft.language = models: LanguageAdapterSet attach_language_adapters
models.peft.lora = models: attach_lora*
models.peft.merge = models: merge_adapters*
models.peft.prompt = models: PromptSet attach_prompts*
models.selector.alexnet = models: AlexNetFeatures
models.selector.features = models: ModelFeatures SelectorFeatures
models.selector.selector = models: AutoSelector*
models.selector.training = models: SelectorTraining
models.stored = models: create_dual_encoder*
models.text.growing = models: GrowingTokenizer*
models.text.hf_tokenizers = models: HFCaptionTokenizer
models.text.learning = models: LearntVocabulary
models.text.teir = models: teir_init_* teir_scale*
models.text.token_table = models: ExpandableTokenEmbedding* attach_token_embedding*
    find_token_embedding load_vocabulary save_vocabulary train_tokens_only
models.text.tokenizers = models: CaptionTokenizer JSONTokenizer OpenCLIPTokenizer
models.text.vocabulary = models: VocabularyGrowth count_tokens
training.methods.best_epoch = training.plugins: BestEpochPlugin
training.methods.budgeted_replay = training.plugins: BudgetedReplayPlugin*
training.methods.c_clip = training.plugins: ContrastiveKnowledgeConsolidationPlugin*;
    training.supervised: CCLIP*
training.methods.cll_clip.expansion = training.plugins: TokenEmbeddingExpansionPlugin*
training.methods.cll_clip.strategy = training.supervised: CLLCLIP* CLL_VARIANTS
training.methods.coleclip.plugin = training.plugins: CoLeCLIPPlugin*
training.methods.coleclip.strategy = training.supervised: COLECLIP_EPOCHS CoLeCLIP*
training.methods.constant_cosine = training.plugins: ConstantCosinePlugin*
training.methods.continual_clip = training.supervised: ContinualCLIP*
training.methods.early_stopping = training: EarlyStopping*; training.plugins:
    EarlyStopping
training.methods.ewc = training.plugins: ContrastiveEWCPlugin* OnlineEWCPlugin
training.methods.joint = training.supervised: ClassNameJoint* Joint*
training.methods.language_adapters = training.plugins: LanguageAdapterPlugin
training.methods.lwf = training.plugins: ContrastiveLwFPlugin*
training.methods.lora = training.plugins: LoRAPlugin*; training.supervised:
    ClassNameLoRA LoRA*
training.methods.mod_x = training.plugins: OffDiagonalAlignmentPlugin*;
    training.supervised: ModX*
training.methods.moe_adapters.plugin = training.plugins: MoEAdaptersPlugin*
training.methods.moe_adapters.strategy = training.supervised: CLASS_INCREMENTAL
    MTIL_RATES MoEAdapters*
training.methods.mtil_training = training.supervised: ClassNameFineTuning FineTuning
training.methods.patching = training.plugins: PatchingPlugin*
training.methods.reservoir_replay = training.plugins: ReservoirReplayPlugin
training.methods.restart = training.plugins: BudgetFactorPlugin* RestartPlugin*
training.methods.tic = training.supervised: ContrastiveEWC* ContrastiveLwF*
    CumulativeAll* CumulativeAllStar* CumulativeEqual* CumulativeExp* Oracle*
    Patching* Restart* Sequential* TIC_STRATEGIES
training.methods.tic_presets = training.supervised: TIC_PRESETS
training.methods.sit = training.supervised: SIT*
training.methods.vr_lwf.plugin = training.plugins: VocabularyReplayPlugin*;
    training.supervised: VRLwF*
training.methods.weight_averaging = training.plugins: WeightAveragingPlugin*
training.methods.weight_consolidation = training.plugins: WeightConsolidationPlugin*
training.methods.zscl.distillation = training.plugins: ReferenceDistillationPlugin*
training.methods.zscl.strategy = training.supervised: ClassNameZSCL ZSCL*
    ZSCL_CLASS_INCREMENTAL zscl_variants
training.runs.checkpoint_plugin = training.plugins: CheckpointPlugin*
    latest_checkpoint
training.runs.plugin_state = checkpointing: register_plugin_state*
training.runs.progress = training.plugins: ProgressPlugin*
training.runs.resume = checkpointing: capture_state load_state* save_state*
training.runs.result = training: RunResult*
training.runs.stream = training: run_stream*
training.templates.class_name = training.templates: ClassNameTemplate*
    default_class_evaluator
training.templates.clip_template = training.templates: CLIPTemplate*
    default_clip_evaluator
training.templates.contract = training.templates: MethodPlugin*
training.templates.contrastive = training.templates: ContrastiveCriterion
    ContrastiveTemplate*
training.templates.distillation = training.plugins: FrozenLogitScalePlugin
training.templates.optim = training: layer_wise_rates*
training.templates.step = training.templates: NonFiniteLossError
"""


def _read(table: str) -> dict[str, dict[str, str]]:
    rows = table.strip().replace("\n    ", " ").split("\n")
    return {
        module: dict(cell.split(": ") for cell in cells.split("; "))
        for module, cells in (row.split(" = ") for row in rows)
    }


EXPORTS = _read(_TABLE)
"""Module -> face -> names; all below the package root."""

SHOWN_BELOW = {
    "benchmarks": ("benchmarks.classic",),
    "evaluation": (
        *("evaluation.functional", "evaluation.metrics", "evaluation.suites"),
    ),
    "training": ("training.templates", "training.supervised"),
}
"""Faces that show the names of others too."""

SUBPACKAGES = (
    "benchmarks",
    "budget",
    "checkpointing",
    "distributed",
    "evaluation",
    "losses",
    "models",
    "training",
)
"""Parts that are attributes of the root without an import statement."""


def face_names(face: str) -> dict[str, str]:
    """Public name -> full name of its module.

    :param face: name below the root, ``""`` for the root.
    """
    shown = (face, *SHOWN_BELOW.get(face, ()))
    return {
        name.rstrip("*"): f"{ROOT}.{module}"
        for module, faces in EXPORTS.items()
        for where, names in faces.items()
        for name in names.split()
        if where in shown or (not face and name.endswith("*"))
    }


def face(
    package: str,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` of a face (PEP 562).

    :param package: ``__name__`` of the face.
    """
    namespace = vars(sys.modules[package])
    modules = face_names(package.removeprefix(ROOT).lstrip("."))
    subpackages = SUBPACKAGES if package == ROOT else ()

    def get(name: str) -> Any:
        if name in modules:
            value = getattr(import_module(modules[name]), name)
        elif name in subpackages:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Found once, the name is an ordinary global and this is not asked again.
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *modules, *subpackages})

    # Importing a submodule would set its name to the module, not to what it defines.
    for name, module in modules.items():
        if module == f"{package}.{name}":
            get(name)
    return get, names, list(modules)
