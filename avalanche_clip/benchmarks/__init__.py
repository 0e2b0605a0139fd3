"""Benchmarks: image-text data sets, streams over time, embedded data.

Names load on first use: the readers in ``datasets`` need no Avalanche, which
takes many seconds to import.
"""

from typing import TYPE_CHECKING

from avalanche_clip._lazy import lazy_names

if TYPE_CHECKING:
    from avalanche_clip.benchmarks.batch import FieldCollate, ImageTextBatch
    from avalanche_clip.benchmarks.class_prompts import ClassPrompts
    from avalanche_clip.benchmarks.class_streams import (
        Domain,
        class_incremental_benchmark,
        class_targets,
        few_shot_indices,
        multi_domain_benchmark,
    )
    from avalanche_clip.benchmarks.classic.cil import (
        cil_cifar100,
        cil_imagenet1k,
        cil_imagenet100,
        cil_tiny_imagenet,
    )
    from avalanche_clip.benchmarks.classic.mtil import mtil, x_tail
    from avalanche_clip.benchmarks.classic.multi_domain_emoji import multi_domain_emoji
    from avalanche_clip.benchmarks.classic.multilingual_coco36 import (
        multilingual_coco36,
    )
    from avalanche_clip.benchmarks.classic.multilingual_emoji import (
        emoji_language_dataset,
        language_order,
        multilingual_emoji,
    )
    from avalanche_clip.benchmarks.classic.tic_emoji import (
        emoji_dataset,
        tic_emoji,
        tic_emoji_joint,
    )
    from avalanche_clip.benchmarks.data import (
        CorruptSampleError,
        attribute_array,
        find_corrupt_samples,
        make_image_text_dataset,
    )
    from avalanche_clip.benchmarks.datasets.feature_store import TeacherFeatureStore
    from avalanche_clip.benchmarks.facts import with_facts, without_images
    from avalanche_clip.benchmarks.generators import time_stamped_benchmark
    from avalanche_clip.benchmarks.multilingual import (
        joint_languages,
        multilingual_benchmark,
    )
    from avalanche_clip.benchmarks.prepare import RandomCaption, prepare_benchmark
    from avalanche_clip.benchmarks.quotas import replay_quotas
    from avalanche_clip.benchmarks.splits import split_online, split_validation
    from avalanche_clip.benchmarks.teacher_features import (
        attach_teacher_features,
        precompute_teacher_features,
    )

_MODULES = {
    "ClassPrompts": "avalanche_clip.benchmarks.class_prompts",
    "CorruptSampleError": "avalanche_clip.benchmarks.data",
    "Domain": "avalanche_clip.benchmarks.class_streams",
    "FieldCollate": "avalanche_clip.benchmarks.batch",
    "ImageTextBatch": "avalanche_clip.benchmarks.batch",
    "RandomCaption": "avalanche_clip.benchmarks.prepare",
    "TeacherFeatureStore": "avalanche_clip.benchmarks.datasets.feature_store",
    "attach_teacher_features": "avalanche_clip.benchmarks.teacher_features",
    "attribute_array": "avalanche_clip.benchmarks.data",
    "cil_cifar100": "avalanche_clip.benchmarks.classic.cil",
    "cil_imagenet100": "avalanche_clip.benchmarks.classic.cil",
    "cil_imagenet1k": "avalanche_clip.benchmarks.classic.cil",
    "cil_tiny_imagenet": "avalanche_clip.benchmarks.classic.cil",
    "class_incremental_benchmark": "avalanche_clip.benchmarks.class_streams",
    "class_targets": "avalanche_clip.benchmarks.class_streams",
    "emoji_dataset": "avalanche_clip.benchmarks.classic.tic_emoji",
    "few_shot_indices": "avalanche_clip.benchmarks.class_streams",
    "emoji_language_dataset": "avalanche_clip.benchmarks.classic.multilingual_emoji",
    "find_corrupt_samples": "avalanche_clip.benchmarks.data",
    "joint_languages": "avalanche_clip.benchmarks.multilingual",
    "language_order": "avalanche_clip.benchmarks.classic.multilingual_emoji",
    "make_image_text_dataset": "avalanche_clip.benchmarks.data",
    "mtil": "avalanche_clip.benchmarks.classic.mtil",
    "multi_domain_benchmark": "avalanche_clip.benchmarks.class_streams",
    "multi_domain_emoji": "avalanche_clip.benchmarks.classic.multi_domain_emoji",
    "multilingual_benchmark": "avalanche_clip.benchmarks.multilingual",
    "multilingual_emoji": "avalanche_clip.benchmarks.classic.multilingual_emoji",
    "multilingual_coco36": "avalanche_clip.benchmarks.classic.multilingual_coco36",
    "precompute_teacher_features": "avalanche_clip.benchmarks.teacher_features",
    "prepare_benchmark": "avalanche_clip.benchmarks.prepare",
    "replay_quotas": "avalanche_clip.benchmarks.quotas",
    "split_online": "avalanche_clip.benchmarks.splits",
    "split_validation": "avalanche_clip.benchmarks.splits",
    "tic_emoji": "avalanche_clip.benchmarks.classic.tic_emoji",
    "tic_emoji_joint": "avalanche_clip.benchmarks.classic.tic_emoji",
    "time_stamped_benchmark": "avalanche_clip.benchmarks.generators",
    "x_tail": "avalanche_clip.benchmarks.classic.mtil",
    "with_facts": "avalanche_clip.benchmarks.facts",
    "without_images": "avalanche_clip.benchmarks.facts",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ClassPrompts",
    "CorruptSampleError",
    "Domain",
    "FieldCollate",
    "ImageTextBatch",
    "RandomCaption",
    "TeacherFeatureStore",
    "attach_teacher_features",
    "attribute_array",
    "cil_cifar100",
    "cil_imagenet100",
    "cil_imagenet1k",
    "cil_tiny_imagenet",
    "class_incremental_benchmark",
    "class_targets",
    "emoji_dataset",
    "few_shot_indices",
    "emoji_language_dataset",
    "find_corrupt_samples",
    "joint_languages",
    "language_order",
    "make_image_text_dataset",
    "mtil",
    "multi_domain_benchmark",
    "multi_domain_emoji",
    "multilingual_benchmark",
    "multilingual_emoji",
    "multilingual_coco36",
    "precompute_teacher_features",
    "prepare_benchmark",
    "replay_quotas",
    "split_online",
    "split_validation",
    "tic_emoji",
    "tic_emoji_joint",
    "time_stamped_benchmark",
    "x_tail",
    "with_facts",
    "without_images",
]
