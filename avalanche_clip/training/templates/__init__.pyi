# Written by tools/write_faces.py from avalanche_clip/_exports.py.
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
from avalanche_clip.training.templates.step import (
    NonFiniteLossError as NonFiniteLossError,
)
