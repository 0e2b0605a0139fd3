# Written by tools/write_faces.py from avalanche_clip/_exports.py.
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
