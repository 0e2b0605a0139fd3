# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.benchmarks.datasets.mtil.coop import (
    CoopSplit as CoopSplit,
    read_coop_split as read_coop_split,
    read_x_tail_domain as read_x_tail_domain,
)
from avalanche_clip.benchmarks.datasets.mtil.folders import (
    read_imagenet as read_imagenet,
    read_imagenet_r as read_imagenet_r,
    read_tiny_imagenet as read_tiny_imagenet,
)
from avalanche_clip.benchmarks.datasets.mtil.images import (
    ClassImages as ClassImages,
    FolderFiles as FolderFiles,
    MTILDomain as MTILDomain,
)
from avalanche_clip.benchmarks.datasets.mtil.names import (
    given_names as given_names,
    prompt_names as prompt_names,
)
from avalanche_clip.benchmarks.datasets.mtil.orders import (
    MTIL_NAMES as MTIL_NAMES,
    MTIL_ORDERS as MTIL_ORDERS,
    ORDER_CHECKSUMS as ORDER_CHECKSUMS,
    X_TAIL_NAMES as X_TAIL_NAMES,
    class_order as class_order,
    dataset_name as dataset_name,
    order_checksum as order_checksum,
)
from avalanche_clip.benchmarks.datasets.mtil.readers import (
    random_80_20 as random_80_20,
    read_mtil_domain as read_mtil_domain,
)
from avalanche_clip.benchmarks.datasets.mtil.table import (
    DATASETS as DATASETS,
    DatasetFacts as DatasetFacts,
)
from avalanche_clip.benchmarks.datasets.mtil.templates import (
    CIL_TEMPLATES as CIL_TEMPLATES,
    MTIL_TEMPLATES as MTIL_TEMPLATES,
    X_TAIL_TEMPLATES as X_TAIL_TEMPLATES,
)
