"""Class-incremental streams on CIFAR-100, TinyImageNet and ImageNet.

Orders of the classes, templates and sizes of the steps are those of
Continual-CLIP (Thengane et al., arXiv 2210.03114) and of ZSCL (Zheng et al., ICCV
2023), which agree. The label of a class is its place in the order of arrival. A test
image is classified among the classes seen so far: give ``ClassNameTemplate`` the
argument ``eval_label_space="seen"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.datasets.mtil.folders import (
    read_imagenet,
    read_tiny_imagenet,
)
from avalanche_clip.benchmarks.datasets.mtil.images import MTILDomain
from avalanche_clip.benchmarks.datasets.mtil.names import given_names
from avalanche_clip.benchmarks.datasets.mtil.orders import class_order
from avalanche_clip.benchmarks.datasets.mtil.readers import read_mtil_domain
from avalanche_clip.benchmarks.datasets.mtil.templates import CIL_TEMPLATES
from avalanche_clip.benchmarks.streams.classes import class_incremental_benchmark
from avalanche_clip.common.checks import as_size, require_choice

ClassNames = Sequence[str] | str | Path


def cil_cifar100(
    root: str | Path,
    steps: int = 10,
    *,
    class_names: ClassNames | None = None,
    templates: str | Sequence[str] | None = None,
    download: bool = False,
    check: str = "warn",
) -> CLScenario:
    """Build CIFAR-100 in 10, 20 or 50 steps of 10, 5 or 2 classes.

    :param root: directory with ``cifar-100-python``.
    :param steps: number of steps, published 10, 20 and 50; must divide 100.
    :param class_names: one name per class in the original order, or a text file
        with one name per line; default torchvision's as they are ("aquarium_fish"),
        which is what the released codes of Continual-CLIP and ZSCL write into prompts.
    :param templates: default ``a bad photo of a {}.``
    :param download: let torchvision fetch the data.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the numbers of
        images are not the published ones.
    :return: a scenario with streams ``train`` and ``test``, one experience per
        step; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if ``steps`` does not divide 100, or names are too few or
        too many.
    :raises FileNotFoundError: if the data are missing.
    """
    sizes = _equal_steps(100, steps, "CIFAR-100 has 100 classes")
    data = read_mtil_domain("CIFAR100", root, download=download, check=check)
    return _stream(cifar100_named(data, class_names), "CIFAR100", sizes, templates)


def cifar100_named(data: MTILDomain, class_names: ClassNames | None) -> MTILDomain:
    """CIFAR-100 with torchvision's own names, or with others.

    The reader replaced the underscores, which MTIL does.
    """
    own = data.train.source.classes
    names = tuple(own) if class_names is None else given_names(class_names, 100)
    return data._replace(class_names=names)


def cil_tiny_imagenet(
    root: str | Path,
    steps: int = 5,
    *,
    class_names: ClassNames | None = None,
    templates: str | Sequence[str] | None = None,
    check: str = "warn",
) -> CLScenario:
    """Build TinyImageNet: 100 classes first, then 5, 10 or 20 steps.

    :param root: directory with ``wnids.txt``, ``train`` and ``val``.
    :param steps: steps after the first, published 5, 10 and 20 (so that there are
        6, 11 and 21 experiences); must divide 100.
    :param class_names: one name per line of ``wnids.txt``, or a text file with one
        name per line; default as in :func:`read_tiny_imagenet`.
    :param templates: default ``a bad photo of a {}.``
    :param check: as in :func:`cil_cifar100`.
    :return: a scenario as in :func:`cil_cifar100`.
    :raises ValueError: if ``steps`` does not divide 100 or names do not fit.
    :raises FileNotFoundError: if the data are missing.
    """
    what = "TinyImageNet has 100 classes after the first 100"
    sizes = [100, *_equal_steps(100, steps, what)]
    data = read_tiny_imagenet(root, class_names=class_names, check=check)
    return _stream(data, "TinyImageNet", sizes, templates)


def cil_imagenet100(
    root: str | Path,
    base: int = 10,
    *,
    class_names: ClassNames | None = None,
    templates: str | Sequence[str] | None = None,
    check: str = "warn",
) -> CLScenario:
    """Build ImageNet-100: 10 steps of 10 classes, or 50 and 10 steps of 5.

    The classes are the first 100 of ImageNet-1K in the order of their WordNet ids.

    :param root: directory with ``train/<id>`` and ``val/<id>``; it may hold more
        classes.
    :param base: classes of the first step, 10 or 50.
    :param class_names: one name per class in sorted order of the ids, or a text
        file with one name per line; default the names published with CLIP.
    :param templates: default ``a good photo of a {}.``
    :param check: as in :func:`cil_cifar100`.
    :return: a scenario as in :func:`cil_cifar100`.
    :raises ValueError: if ``base`` is neither, or names or folders do not fit.
    :raises FileNotFoundError: if the data are missing.
    """
    published = {10: [10] * 10, 50: [50] + [5] * 10}
    require_choice("base", base, published)
    data = read_imagenet(root, num_classes=100, class_names=class_names, check=check)
    return _stream(data, "ImageNet100", published[base], templates)


def cil_imagenet1k(
    root: str | Path,
    steps: int = 10,
    *,
    class_names: ClassNames | None = None,
    templates: str | Sequence[str] | None = None,
    check: str = "warn",
) -> CLScenario:
    """Build ImageNet-1K in 10 steps of 100 classes.

    :param root: directory with ``train/<id>`` and ``val/<id>``.
    :param steps: number of steps, published 10; must divide 1000.
    :param class_names: as in :func:`cil_imagenet100`.
    :param templates: default ``a good photo of a {}.``
    :param check: as in :func:`cil_cifar100`.
    :return: a scenario as in :func:`cil_cifar100`.
    :raises ValueError: if ``steps`` does not divide 1000, or names or folders do
        not fit.
    :raises FileNotFoundError: if the data are missing.
    """
    sizes = _equal_steps(1000, steps, "ImageNet-1K has 1,000 classes")
    data = read_imagenet(root, num_classes=1000, class_names=class_names, check=check)
    return _stream(data, "ImageNet1K", sizes, templates)


def _equal_steps(classes: int, steps: int, what: str) -> list[int]:
    count = as_size(steps, "steps")
    if classes % count:
        raise ValueError(f"steps={steps!r}, but {what}; choose a divisor of {classes}.")
    return [classes // count] * count


def _stream(
    data: MTILDomain, name: str, sizes: list[int], templates: str | Sequence[str] | None
) -> CLScenario:
    order = class_order(name)
    if len(data.class_names) != len(order):
        raise ValueError(
            f"{name} has {len(data.class_names)} classes here, but its published order "
            f"has {len(order)}; use the whole data set, or class_incremental_benchmark "
            "with an order of your own."
        )
    return class_incremental_benchmark(
        data.train,
        data.test,
        data.class_names,
        CIL_TEMPLATES[name] if templates is None else templates,
        class_order=order,
        sizes=sizes,
        relabel="arrival",
    )
