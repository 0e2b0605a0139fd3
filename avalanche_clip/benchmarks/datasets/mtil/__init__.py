"""The data sets of MTIL and of class-incremental streams, free of Avalanche.

Importing this package loads NumPy and Pillow only; torch and torchvision load
when a data set is read.
"""

from .coop import CoopSplit, read_coop_split, read_x_tail_domain
from .folders import read_imagenet, read_tiny_imagenet
from .images import ClassImages, FolderFiles, MTILDomain
from .names import given_names, prompt_names
from .orders import (
    MTIL_NAMES,
    MTIL_ORDERS,
    ORDER_CHECKSUMS,
    X_TAIL_NAMES,
    class_order,
    dataset_name,
    order_checksum,
)
from .readers import random_80_20, read_mtil_domain
from .table import DATASETS, DatasetFacts
from .templates import CIL_TEMPLATES, MTIL_TEMPLATES, X_TAIL_TEMPLATES

__all__ = [
    "CIL_TEMPLATES",
    "DATASETS",
    "MTIL_NAMES",
    "MTIL_ORDERS",
    "MTIL_TEMPLATES",
    "ORDER_CHECKSUMS",
    "X_TAIL_NAMES",
    "X_TAIL_TEMPLATES",
    "CoopSplit",
    "DatasetFacts",
    "FolderFiles",
    "ClassImages",
    "MTILDomain",
    "class_order",
    "dataset_name",
    "given_names",
    "order_checksum",
    "prompt_names",
    "random_80_20",
    "read_coop_split",
    "read_imagenet",
    "read_mtil_domain",
    "read_tiny_imagenet",
    "read_x_tail_domain",
]
