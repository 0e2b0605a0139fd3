"""The Si-Blurry streams of SIT, and one of emoji."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.classic.cil import ClassNames, cifar100_named
from avalanche_clip.benchmarks.classic.multi_domain_emoji import EmojiClasses
from avalanche_clip.benchmarks.datasets.emoji import (
    VALIDATION_STYLE,
    check_styles,
    load_emoji_table,
    validation_mask,
)
from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons
from avalanche_clip.benchmarks.datasets.mtil.folders import (
    read_imagenet_r,
    read_tiny_imagenet,
)
from avalanche_clip.benchmarks.datasets.mtil.images import ClassImages
from avalanche_clip.benchmarks.datasets.mtil.readers import read_mtil_domain
from avalanche_clip.benchmarks.datasets.mtil.templates import CIL_TEMPLATES
from avalanche_clip.benchmarks.streams.classes import Domain
from avalanche_clip.benchmarks.streams.si_blurry import (
    SAMPLER_OPTIONS,
    si_blurry_benchmark,
)
from avalanche_clip.common.checks import (
    as_texts,
    require_choice,
    require_distinct,
    require_known,
)

SIT_DATASETS = ("CIFAR100", "TinyImageNet", "ImageNetR")
"""Data sets of the Si-Blurry experiments of SIT."""

SIT_ZERO_SHOT = ("Food", "Caltech101", "EuroSAT", "Flowers", "OxfordPet")
"""Data sets that SIT tests after the stream."""


def si_blurry(
    dataset: str,
    root: str | Path,
    *,
    class_names: ClassNames | None = None,
    templates: str | Sequence[str] = CIL_TEMPLATES["CIFAR100"],
    zero_shot: Sequence[str] = (),
    zero_shot_root: str | Path | None = None,
    check: str = "warn",
    **options: Any,
) -> CLScenario:
    """Build the Si-Blurry stream of CIFAR-100, TinyImageNet or ImageNet-R.

    Five tasks, half of the classes disjoint, 10 % of the samples of the others
    blurred, as SIT has it; cut it with ``split_online(benchmark, 64)``. The test
    images of CIFAR-100 are the official ones: the released code of SIT tests on the
    training images by mistake, so that its numbers on CIFAR-100 do not compare.

    :param dataset: ``"CIFAR100"``, ``"TinyImageNet"`` or ``"ImageNetR"``.
    :param root: its directory, see :func:`read_mtil_domain`,
        :func:`read_tiny_imagenet` and :func:`read_imagenet_r`.
    :param class_names: one name per class, or a text file with one name per line;
        default as in :func:`cil_cifar100` and in the readers.
    :param templates: of this data set and the ``zero_shot`` ones; default
        ``a bad photo of a {}.``
    :param zero_shot: names of MTIL's data sets that are tested after the stream;
        in SIT :data:`SIT_ZERO_SHOT`.
    :param zero_shot_root: directory of their folders.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the sizes are not the
        published ones.
    :param options: see :func:`si_blurry_benchmark`: ``seed`` (published 1 to 5),
        ``num_tasks``, ``disjoint_percent``, ``blurry_percent``, ``stochastic``.
    :return: a scenario as in :func:`si_blurry_benchmark`.
    :raises ValueError: for an unknown data set or option.
    :raises FileNotFoundError: if the data are missing.

    Source: Wang et al., 2024 (SIT, arXiv 2405.15155) and the released code.
    """
    require_choice("dataset", dataset, SIT_DATASETS)
    require_known(options, SAMPLER_OPTIONS, "options")
    if dataset == "CIFAR100":
        data = read_mtil_domain("CIFAR100", root, check=check)
        data = cifar100_named(data, class_names)
    else:
        read = {"TinyImageNet": read_tiny_imagenet, "ImageNetR": read_imagenet_r}
        data = read[dataset](root, class_names=class_names, check=check)
    names = as_texts(zero_shot, "zero_shot", least=0)
    if names and zero_shot_root is None:
        raise ValueError(f"zero_shot={names} are to be read; give zero_shot_root, too.")
    held = [read_mtil_domain(n, str(zero_shot_root), check=check) for n in names]
    shared: Any = templates  # as given, whatever the reader's
    domains = [domain._replace(templates=shared) for domain in held]
    return si_blurry_benchmark(*data[:3], templates, zero_shot=domains, **options)


def si_blurry_emoji(
    *,
    held_out: Sequence[str] = (),
    styles: str | Sequence[str] = ("noto", "openmoji"),
    test_style: str = "twemoji",
    templates: str | Sequence[str] = "{}",
    validation: bool = False,
    **options: Any,
) -> CLScenario:
    """Build the Si-Blurry stream of emoji, with subgroups as classes.

    The 99 subgroups of all 1,911 emoji, named in words ("face smiling", "sky and
    weather"), of 1 to 259 emoji each; the sampler leaves out those that the number of
    tasks does not divide (4 by default), with a warning. Training images are drawings
    in ``styles``, test images those of a style never trained on.

    Streams: ``train``, ``test``, ``valid`` when asked for (the OpenMoji drawing of a
    hashed 20 % of the emoji, kept out of training), and ``zero_shot``: the groups
    ``held_out``, their subgroups as classes, and the held-out icons, whose 968 names
    are classes. See :func:`si_blurry_benchmark`.

    :param held_out: names of emoji groups that are no part of the stream, such as
        ``"Food & Drink"``.
    :param styles: drawing styles to train on, one or several.
    :param test_style: drawing style of ``test`` and of the groups ``held_out``.
    :param templates: prompt templates; the default is the name alone, as the shipped
        models were trained.
    :param validation: whether to hold out a validation stream.
    :param options: see :func:`si_blurry_benchmark`: ``seed``, ``num_tasks``,
        ``disjoint_percent``, ``blurry_percent``, ``stochastic``.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: for an unknown style or group, or a test style that is
        trained on.

    Sources: see :func:`tic_emoji` and :func:`held_out_icons`; the protocol is that
    of SIT (arXiv 2405.15155), the data set is ours.
    """
    require_known(options, SAMPLER_OPTIONS, "options")
    styles = [styles] if isinstance(styles, str) else styles
    styles = check_styles(styles, test_style, validation)
    table = load_emoji_table()
    groups = as_texts(held_out, "held_out", least=0)
    require_known(groups, table.groups, "held_out")
    require_distinct(groups, "held_out")
    out = [table.groups.index(group) for group in groups]
    names, drawings = _subgroups(~np.isin(table.group, out))
    held = validation_mask(table.ids) if validation else None
    if validation:
        options["valid"] = drawings([VALIDATION_STYLE], held=held, keep_held=True)
    zero_shot = []
    for number, group in zip(out, groups, strict=True):
        own, draw = _subgroups(table.group == number)
        zero_shot.append(Domain(None, draw([test_style]), own, templates, group))
    icons, numbers = HeldOutIcons(), np.arange(len(HeldOutIcons()))
    images = ClassImages(icons, numbers, numbers)
    zero_shot.append(Domain(None, images, icons.names, templates, "icons"))
    train, test = drawings(styles, held=held), drawings([test_style])
    return si_blurry_benchmark(
        train, test, names, templates, zero_shot=zero_shot, **options
    )


def _subgroups(chosen: np.ndarray) -> tuple[list[str], Callable[..., EmojiClasses]]:
    """Names of the subgroups of some emoji, and styles to drawings in these classes."""
    table, rows = load_emoji_table(), np.flatnonzero(chosen)
    found, labels = np.unique(table.subgroup[rows], return_inverse=True)
    spelled = [table.subgroups[number].replace("-", " ") for number in found]
    names = [name.replace("&", "and") for name in spelled]
    return names, partial(EmojiClasses, indices=rows, labels=labels)
