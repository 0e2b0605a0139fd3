# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.benchmarks.classic.cil import (
    cil_cifar100 as cil_cifar100,
    cil_imagenet100 as cil_imagenet100,
    cil_imagenet1k as cil_imagenet1k,
    cil_tiny_imagenet as cil_tiny_imagenet,
)
from avalanche_clip.benchmarks.classic.core50 import (
    core50 as core50,
)
from avalanche_clip.benchmarks.classic.held_out_icons import (
    held_out_icons as held_out_icons,
)
from avalanche_clip.benchmarks.classic.mtil import (
    mtil as mtil,
    x_tail as x_tail,
)
from avalanche_clip.benchmarks.classic.multi_domain_emoji import (
    multi_domain_emoji as multi_domain_emoji,
)
from avalanche_clip.benchmarks.classic.multilingual_coco36 import (
    multilingual_coco36 as multilingual_coco36,
)
from avalanche_clip.benchmarks.classic.multilingual_emoji import (
    emoji_language_dataset as emoji_language_dataset,
    language_order as language_order,
    multilingual_emoji as multilingual_emoji,
)
from avalanche_clip.benchmarks.classic.si_blurry import (
    SIT_ZERO_SHOT as SIT_ZERO_SHOT,
    si_blurry as si_blurry,
    si_blurry_emoji as si_blurry_emoji,
)
from avalanche_clip.benchmarks.classic.tic_clip import (
    TIC_DATACOMP_STEPS as TIC_DATACOMP_STEPS,
    tic_datacomp as tic_datacomp,
    tic_redcaps as tic_redcaps,
    tic_yfcc as tic_yfcc,
)
from avalanche_clip.benchmarks.classic.tic_emoji import (
    emoji_dataset as emoji_dataset,
    tic_emoji as tic_emoji,
    tic_emoji_joint as tic_emoji_joint,
)
