# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.evaluation.functional.blind_pairs import (
    BlindPair as BlindPair,
    clip_blind_pairs as clip_blind_pairs,
)
from avalanche_clip.evaluation.functional.classification import (
    class_ranks as class_ranks,
    class_vectors as class_vectors,
    classification_metrics as classification_metrics,
)
from avalanche_clip.evaluation.functional.disorder import (
    ROTATION_BINS as ROTATION_BINS,
    TOPOLOGY_BINS as TOPOLOGY_BINS,
    angle_histogram as angle_histogram,
    rotation_angles as rotation_angles,
    self_angles as self_angles,
    spatial_disorder as spatial_disorder,
    topology_change as topology_change,
)
from avalanche_clip.evaluation.functional.forgetting import (
    forgetting_per_task as forgetting_per_task,
    multilingual_summary as multilingual_summary,
    recall_forgetting as recall_forgetting,
    recall_forgetting_curves as recall_forgetting_curves,
)
from avalanche_clip.evaluation.functional.intervals import (
    Interval as Interval,
    bootstrap_interval as bootstrap_interval,
    resampled_interval as resampled_interval,
    wilson_interval as wilson_interval,
)
from avalanche_clip.evaluation.functional.online import (
    exposed_accuracy as exposed_accuracy,
    online_accuracy as online_accuracy,
)
from avalanche_clip.evaluation.functional.pairs import (
    pair_metrics as pair_metrics,
    pattern_metrics as pattern_metrics,
)
from avalanche_clip.evaluation.functional.ranks import (
    RetrievalRanks as RetrievalRanks,
    owner_pairs as owner_pairs,
    retrieval_ranks as retrieval_ranks,
)
from avalanche_clip.evaluation.functional.retrieval import (
    retrieval_metrics as retrieval_metrics,
)
from avalanche_clip.evaluation.functional.short_answers import (
    dimension_averages as dimension_averages,
    prior_baselines as prior_baselines,
    short_answer_parsed as short_answer_parsed,
    short_answer_score as short_answer_score,
)
from avalanche_clip.evaluation.functional.texts import (
    merge_equal_pairs as merge_equal_pairs,
)
from avalanche_clip.evaluation.functional.transfer import (
    continual_summary as continual_summary,
    fold_columns as fold_columns,
    incremental_accuracy as incremental_accuracy,
    seen_unseen_harmonic as seen_unseen_harmonic,
    seen_unseen_per_step as seen_unseen_per_step,
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
    SpatialDisorderMetric as SpatialDisorderMetric,
    spatial_disorder_metrics as spatial_disorder_metrics,
)
from avalanche_clip.evaluation.metrics.label_spaces import (
    LabelSpaceAccuracy as LabelSpaceAccuracy,
    label_space_metrics as label_space_metrics,
)
from avalanche_clip.evaluation.metrics.loss_terms import (
    LossTermsMetric as LossTermsMetric,
    loss_term_metrics as loss_term_metrics,
)
from avalanche_clip.evaluation.metrics.retrieval import (
    RetrievalMetric as RetrievalMetric,
    retrieval_plugin_metrics as retrieval_plugin_metrics,
)
from avalanche_clip.evaluation.metrics.summary import (
    ContinualSummary as ContinualSummary,
)
from avalanche_clip.evaluation.suites.blind_pairs import (
    BlindPairsSuite as BlindPairsSuite,
)
from avalanche_clip.evaluation.suites.chat import (
    ChatModel as ChatModel,
    Turn as Turn,
)
from avalanche_clip.evaluation.suites.mirb import (
    ChatScorer as ChatScorer,
    MIRBResult as MIRBResult,
    MIRBSuite as MIRBSuite,
    mirb as mirb,
    mirb_values as mirb_values,
)
from avalanche_clip.evaluation.suites.mmvp import (
    MMVPResult as MMVPResult,
    mmvp as mmvp,
    mmvp_scores as mmvp_scores,
    parse_option as parse_option,
)
from avalanche_clip.evaluation.suites.mmvp_vlm import (
    MMVPVLMSuite as MMVPVLMSuite,
    mmvp_vlm as mmvp_vlm,
)
from avalanche_clip.evaluation.suites.multi_image import (
    Answer as Answer,
    DualEncoderScorer as DualEncoderScorer,
    MultiImageScorer as MultiImageScorer,
)
from avalanche_clip.evaluation.suites.suite import (
    Encoded as Encoded,
    Suite as Suite,
    SuiteFeatures as SuiteFeatures,
    metrics_only as metrics_only,
    require_dual_encoder as require_dual_encoder,
)
from avalanche_clip.evaluation.suites.tasks import (
    ZeroShotTask as ZeroShotTask,
    embedded_tasks as embedded_tasks,
)
from avalanche_clip.evaluation.suites.zero_shot import (
    ZeroShotSuite as ZeroShotSuite,
    datacomp_tasks as datacomp_tasks,
)
