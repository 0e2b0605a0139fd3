"""Images with classes: RGB when read, targets without decoding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from avalanche_clip.common.checks import require_length
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.common.pictures import picture_to_rgb, read_picture

if TYPE_CHECKING:
    import torch

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm")


class ClassImages:
    """Part of a data set of ``(image, class)`` items, images in RGB.

    Nothing is decoded before an item is read. The object may be pickled to loader
    workers if its source may.

    :param source: object with ``[i] -> (PIL image or tensor, ...)``.
    :param indices: positions in the source, in the order of this data set.
    :param targets: class of each of these positions.
    :ivar indices: int64, ``(N,)``, read-only.
    :ivar targets: int64, ``(N,)``, read-only.
    :raises ValueError: if ``indices`` and ``targets`` differ in length.
    """

    def __init__(
        self,
        source: Any,
        indices: Sequence[int] | np.ndarray,
        targets: Sequence[int] | np.ndarray,
    ) -> None:
        self.source = source
        self.indices = _column(indices)
        self.targets = _column(targets)
        require_length(self.targets, len(self.indices), "targets", "index")

    @classmethod
    def of_files(
        cls,
        folder: str | os.PathLike[str],
        names: Sequence[str],
        targets: Sequence[int],
    ) -> ClassImages:
        """Make a data set of files, one class each, see :class:`FolderFiles`."""
        return cls(FolderFiles(folder, names), np.arange(len(names)), targets)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image | torch.Tensor, int]:
        image = self.source[int(self.indices[index])][0]
        if isinstance(image, Image.Image):
            image = picture_to_rgb(image)
        return image, int(self.targets[index])

    def subset(self, positions: Sequence[int] | np.ndarray) -> ClassImages:
        """Return the items at some positions, in the order given.

        :param positions: integers in ``[0, len(self))``, or a bool mask of the
            length of the data set.
        """
        chosen = np.asarray(positions)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        return ClassImages(self.source, self.indices[chosen], self.targets[chosen])


class FolderFiles:
    """Image files named in columns, not in Python objects: 10^6 take about 40 MB.

    :param folder: directory that the names are relative to.
    :param names: relative paths, with ``/``.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[str]) -> None:
        self.folder = os.fspath(folder)
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path of one file."""
        relative = os.fsdecode(self.names[index].item())
        return os.path.join(self.folder, *relative.split("/"))

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        return (read_picture(self.path(index)),)


class MTILDomain(NamedTuple):
    """One data set as a task: what ``multi_domain_benchmark`` takes per domain.

    :ivar train: training images.
    :ivar test: test images.
    :ivar class_names: name of each class, in the order of the targets.
    :ivar templates: prompt templates, the first one is the training prompt.
    :ivar name: name of the data set.
    """

    train: ClassImages
    test: ClassImages
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    name: str


def _column(values: Any) -> np.ndarray:
    array = as_integer_array(values, "indices or targets")
    array.flags.writeable = False
    return array
