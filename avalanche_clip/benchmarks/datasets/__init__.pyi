# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.benchmarks.datasets.blind_emoji import (
    BlindEmoji as BlindEmoji,
)
from avalanche_clip.benchmarks.datasets.captioned import (
    CaptionedImages as CaptionedImages,
    LANGUAGES_36 as LANGUAGES_36,
    missing_images as missing_images,
    read_annotations as read_annotations,
    read_ground_truth as read_ground_truth,
)
from avalanche_clip.benchmarks.datasets.coco36 import (
    COCO36_LANGUAGES as COCO36_LANGUAGES,
    Coco36 as Coco36,
    CocoTriplets as CocoTriplets,
)
from avalanche_clip.benchmarks.datasets.core50 import (
    CORE50_NAMES as CORE50_NAMES,
    CORE50_TEST_SESSIONS as CORE50_TEST_SESSIONS,
    Core50 as Core50,
    read_core50 as read_core50,
)
from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_LANGUAGES as EMOJI_LANGUAGES,
    EMOJI_SIZE as EMOJI_SIZE,
    EMOJI_STEPS as EMOJI_STEPS,
    EMOJI_STYLES as EMOJI_STYLES,
    EmojiImages as EmojiImages,
    EmojiPairs as EmojiPairs,
    EmojiStep as EmojiStep,
    EmojiTable as EmojiTable,
    load_emoji_table as load_emoji_table,
    validation_mask as validation_mask,
)
from avalanche_clip.benchmarks.datasets.emoji_mirb import (
    emoji_mirb as emoji_mirb,
    write_emoji_mirb as write_emoji_mirb,
)
from avalanche_clip.benchmarks.datasets.fields import (
    file_time as file_time,
)
from avalanche_clip.benchmarks.datasets.icons import (
    FIRST_ICON_ID as FIRST_ICON_ID,
    HeldOutIcons as HeldOutIcons,
)
from avalanche_clip.benchmarks.datasets.mirb import (
    MIRBDataset as MIRBDataset,
    MIRB_CONTROLS as MIRB_CONTROLS,
    MIRB_DIMENSIONS as MIRB_DIMENSIONS,
    MIRB_SUBSETS as MIRB_SUBSETS,
    MultiImageSample as MultiImageSample,
)
from avalanche_clip.benchmarks.datasets.mmvp import (
    ImagePair as ImagePair,
    MMVPDataset as MMVPDataset,
    MMVPQuestion as MMVPQuestion,
    MMVPVLMDataset as MMVPVLMDataset,
    MMVP_PATTERNS as MMVP_PATTERNS,
)
from avalanche_clip.benchmarks.datasets.mtil.coop import (
    read_coop_split as read_coop_split,
    read_x_tail_domain as read_x_tail_domain,
)
from avalanche_clip.benchmarks.datasets.mtil.folders import (
    read_imagenet as read_imagenet,
    read_imagenet_r as read_imagenet_r,
    read_tiny_imagenet as read_tiny_imagenet,
)
from avalanche_clip.benchmarks.datasets.mtil.images import (
    MTILDomain as MTILDomain,
)
from avalanche_clip.benchmarks.datasets.mtil.orders import (
    MTIL_NAMES as MTIL_NAMES,
)
from avalanche_clip.benchmarks.datasets.mtil.readers import (
    read_mtil_domain as read_mtil_domain,
)
from avalanche_clip.benchmarks.datasets.parquet import (
    read_clip_retrieval as read_clip_retrieval,
    read_parquet as read_parquet,
)
from avalanche_clip.benchmarks.datasets.row_stream import (
    RowStream as RowStream,
)
from avalanche_clip.benchmarks.datasets.rows import (
    ImageTextRows as ImageTextRows,
    read_coco_captions as read_coco_captions,
    read_image_table as read_image_table,
    read_karpathy as read_karpathy,
    read_rows as read_rows,
)
from avalanche_clip.benchmarks.datasets.text_columns import (
    TextColumn as TextColumn,
    read_table as read_table,
)
from avalanche_clip.benchmarks.datasets.web.folder import (
    FolderPairs as FolderPairs,
    WebFolder as WebFolder,
)
from avalanche_clip.benchmarks.datasets.web.folder_index import (
    FolderIndex as FolderIndex,
)
from avalanche_clip.benchmarks.datasets.web.pairs import (
    TarPairs as TarPairs,
)
from avalanche_clip.benchmarks.datasets.web.stream import (
    ShardStream as ShardStream,
)
from avalanche_clip.benchmarks.datasets.web.tar_index import (
    TarIndex as TarIndex,
    find_tars as find_tars,
    open_tar_index as open_tar_index,
)
from avalanche_clip.benchmarks.datasets.web.tic_lists import (
    TIC_DATACOMP_MONTHS as TIC_DATACOMP_MONTHS,
    all_uids as all_uids,
    read_evaluation_uids as read_evaluation_uids,
    read_uid_lists as read_uid_lists,
)
from avalanche_clip.benchmarks.datasets.web.tic_shards import (
    TicShards as TicShards,
)
from avalanche_clip.benchmarks.datasets.web.tic_tables import (
    build_tic_redcaps as build_tic_redcaps,
    build_tic_yfcc as build_tic_yfcc,
    read_pair_table as read_pair_table,
    yfcc_caption as yfcc_caption,
)
from avalanche_clip.benchmarks.datasets.web.uids import (
    as_uids as as_uids,
    combine_uid_lists as combine_uid_lists,
    find_uids as find_uids,
)
from avalanche_clip.benchmarks.datasets.xm3600 import (
    XM3600 as XM3600,
    XM3600_CAPTIONS as XM3600_CAPTIONS,
    XM3600_LANGUAGES as XM3600_LANGUAGES,
)
from avalanche_clip.benchmarks.teacher.released import (
    read_feature_pickle as read_feature_pickle,
    read_line_rows as read_line_rows,
)
from avalanche_clip.benchmarks.teacher.store import (
    TeacherFeatureStore as TeacherFeatureStore,
)
