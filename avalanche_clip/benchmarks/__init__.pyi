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
from avalanche_clip.benchmarks.datasets.web.uids import (
    pair_to_uid as pair_to_uid,
    read_uid_list as read_uid_list,
    uid_to_pair as uid_to_pair,
    write_uid_list as write_uid_list,
)
from avalanche_clip.benchmarks.items.batch import (
    FieldCollate as FieldCollate,
    ImageTextBatch as ImageTextBatch,
)
from avalanche_clip.benchmarks.items.class_labels import (
    class_targets as class_targets,
    few_shot_indices as few_shot_indices,
)
from avalanche_clip.benchmarks.items.class_prompts import (
    ClassPrompts as ClassPrompts,
)
from avalanche_clip.benchmarks.items.facts import (
    with_facts as with_facts,
    without_images as without_images,
)
from avalanche_clip.benchmarks.items.items import (
    CorruptSampleError as CorruptSampleError,
    attribute_array as attribute_array,
    find_corrupt_samples as find_corrupt_samples,
    make_image_text_dataset as make_image_text_dataset,
)
from avalanche_clip.benchmarks.items.prepare import (
    RandomCaption as RandomCaption,
    prepare_benchmark as prepare_benchmark,
)
from avalanche_clip.benchmarks.items.scenario import (
    make_experience as make_experience,
    make_scenario as make_scenario,
)
from avalanche_clip.benchmarks.items.skipped import (
    SKIP_CAUSES as SKIP_CAUSES,
    SampleFault as SampleFault,
    Skipped as Skipped,
)
from avalanche_clip.benchmarks.streams.classes import (
    Domain as Domain,
    class_incremental_benchmark as class_incremental_benchmark,
    multi_domain_benchmark as multi_domain_benchmark,
)
from avalanche_clip.benchmarks.streams.languages import (
    joint_languages as joint_languages,
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
from avalanche_clip.benchmarks.teacher.precompute import (
    attach_teacher_features as attach_teacher_features,
    precompute_teacher_features as precompute_teacher_features,
)
from avalanche_clip.benchmarks.teacher.store import (
    TeacherFeatureStore as TeacherFeatureStore,
)
