# Written by tools/write_faces.py from avalanche_clip/_exports.py.
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
