"""Run a teacher once over pictures and English captions, and train from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.content import SAMPLED, hashed_items
from avalanche_clip.benchmarks.items.facts import with_facts, without_images
from avalanche_clip.benchmarks.items.flat import has_no_images, locate
from avalanche_clip.benchmarks.items.items import CheckedPairs, attribute_array
from avalanche_clip.benchmarks.items.prepare import describe
from avalanche_clip.benchmarks.items.scenario import clone_experience, make_scenario
from avalanche_clip.benchmarks.teacher.files import (
    DTYPES,
    FORMAT,
    HEADER,
    KINDS,
    compare_headers,
    read_header,
)
from avalanche_clip.benchmarks.teacher.store import (
    TeacherFeatureStore,
    content_marks,
    data_fingerprint,
)
from avalanche_clip.benchmarks.teacher.writer import FeatureWriter
from avalanche_clip.common.checks import (
    as_size,
    require_choice,
    require_known,
    require_some,
    require_type,
)
from avalanche_clip.common.progress import bar

_ID_NAMES = {
    "image": ("image_id", "source_id", "sample_id"),
    "text": ("text_id", "source_id", "sample_id"),
}
_FLUSH = 32  # batches between two notes of the progress
_CHECKED = 4096


def teacher_ids(dataset: AvalancheDataset, kind: str) -> npt.NDArray[np.int64]:
    """Return the id of each sample's picture or English caption.

    These are the facts ``image_id`` and ``text_id``; where a data set lacks them,
    ``source_id`` (left by :func:`multilingual_benchmark`), else ``sample_id``.

    :param dataset: image-text data.
    :param kind: ``"image"`` or ``"text"``.
    """
    for name in _ID_NAMES[kind]:
        if name in dataset._data_attributes:
            return attribute_array(dataset, name)
    raise ValueError(f"The data set has none of the facts {_ID_NAMES[kind]}.")


def precompute_teacher_features(
    model: Any,
    dataset: AvalancheDataset,
    path: str | Path,
    *,
    batch_size: int = 128,
    dtype: str = "float32",
    num_workers: int = 0,
    budget: Any = None,
) -> TeacherFeatureStore:
    """Encode each picture and each English caption once, into a store on disk.

    An unfinished store (``path`` with ``.partial`` added) is checked and continued, a
    finished one of the same model and data is opened; the folder gets its name in one
    step when everything is written. One process writes a store at a time, and its
    space is reserved first. Pictures pass ``model.transform(False)``; of items
    with several captions the first is used. The pixels of some pictures, spread over
    the data, are remembered, so that others under the same ids are found. With several
    processes the main one works and the others wait.

    :param model: a :class:`~avalanche_clip.models.DualEncoder` with the weights that
        are to teach; its mode is put back afterwards.
    :param dataset: pictures with English captions, prepared or not: an English data
        set, one whose source knows them (method ``english``), or a benchmark's
        ``teacher_source``. Its ids are those
        of :func:`teacher_ids`; samples that share one must share the content.
    :param path: folder to make.
    :param batch_size: pictures or captions per pass.
    :param dtype: ``"float32"``, or ``"float16"`` for half the size.
    :param num_workers: processes that read pictures.
    :param budget: :class:`ComputeBudget` to book the passes on as ``"teacher"``, such
        as ``strategy.compute``; what the store had before costs nothing.
    :return: the store.
    :raises ValueError: if there is a store of another model, other data or another
        type, or a damaged one, if another process is writing it, if samples of one id
        have different captions or file names, or an option is not among the allowed.
    :raises OSError: if the disk is too small.
    """
    require_choice("dtype", dtype, DTYPES)
    as_size(batch_size, "batch_size")
    as_size(num_workers, "num_workers", least=0)
    path = Path(path).expanduser().absolute()
    store: TeacherFeatureStore | None = None
    spent: dict[str, int] = {}
    with distributed.together("making a store of teacher features"):
        if distributed.is_main_process():
            job = _Job(model, dataset, path, dtype)
            finished = (path / HEADER).is_file()
            made = not finished and job.run(batch_size, num_workers)
            compare_headers(path, read_header(path), job.header)
            # What was written a moment ago is not read again.
            store = TeacherFeatureStore.open(path, verify=not made)
            spent = job.spent
    if budget is not None:
        spent = distributed.broadcast_object(spent)
        budget.spend("teacher", images=spent["image"], texts=spent["text"])
    # What the main process has verified is not read again by each of the others.
    return store or TeacherFeatureStore.open(path, verify=False)


class _Job:
    """One store in the making."""

    def __init__(self, model: Any, dataset: AvalancheDataset, path: Path, dtype: str):
        self.model, self.dataset, self.path = model, dataset, path
        self.transform = model.transform(False)
        found = zip(*(self._index(kind) for kind in KINDS))
        self.ids, self.first, self.marks = (dict(zip(KINDS, part)) for part in found)
        self.spent = dict.fromkeys(KINDS, 0)
        """Forward passes that the store took here."""
        self.header: dict[str, Any] = {
            "format": FORMAT,
            "model": {kind: model.state_fingerprint(kind) for kind in KINDS},
            "vocab_size": int(getattr(model.tokenizer, "vocab_size", 0)),
            "transform": describe(self.transform),
            "data": data_fingerprint(self.ids, self.marks),
            "dim": int(model.embed_dim),
            "dtype": dtype,
            "rows": {kind: len(self.ids[kind]) for kind in KINDS},
        }
        count = len(self.ids["image"])
        self.places = np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int))
        pictures = self._sample()
        if pictures is not None:  # a finished store may be opened without pictures
            self.header["pictures"] = pictures

    def _sample(self) -> str | None:
        """Hash some pictures, spread over the data: ids and names may stay alike.

        :return: hexadecimal digits; ``"random"`` if pictures are others at each
            reading, None if there are none or they cannot be read.
        """
        if has_no_images(self.dataset):
            return None
        positions = self.first["image"][self.places].tolist()
        read = hashed_items(self.dataset, positions)
        known = [item for item in read if item is not None]
        if len(known) < len(read):
            return None
        if any(one[0] != two[0] for one, two in known):
            return "random"
        return hashlib.sha256(b"".join(one[0] for one, _ in known)).hexdigest()[:32]

    def _index(self, kind: str) -> tuple[npt.NDArray[Any], ...]:
        """Find distinct ids, their first samples and what they stand for."""
        column = teacher_ids(self.dataset, kind)
        require_some(column, "samples to encode")
        samples = (_source(self.dataset, k) for k in range(len(column)))
        content = content_marks(
            first_caption(*s) if kind == "text" else known_name(s[0], kind, s[1]) or ""
            for s in samples
        )
        ids, first, owner = np.unique(column, return_index=True, return_inverse=True)
        different = np.flatnonzero(content != content[first][owner])
        if different.size:
            wrong = int(different[0])
            what = "English captions" if kind == "text" else "pictures"
            raise ValueError(
                f"Samples {int(first[owner[wrong]])} and {wrong} have the {kind} id "
                f"{column[wrong]} but different {what}. Give an English data set whose "
                f"facts {_ID_NAMES[kind][0]} tell them apart."
            )
        return ids, first, content[first]

    def run(self, batch_size: int, num_workers: int) -> bool:
        """Write what is missing and give the folder its name.

        :return: whether the store was made here.
        """
        with FeatureWriter(self.path, self.header, self.ids, self.marks) as writer:
            if writer.finished:
                return False
            if "pictures" not in self.header:  # say why, before anything is computed
                pictures = _Pictures(self.dataset, self.first["image"], self.transform)
                for place in self.places.tolist():
                    pictures[place]
            was_training = [(m, m.training) for m in self.model.modules()]
            self.model.eval()
            try:
                with torch.no_grad():
                    done = dict(writer.done)
                    texts = self._texts(done["text"], batch_size)
                    self._fill("text", writer, texts)
                    images = self._images(done["image"], batch_size, num_workers)
                    self._fill("image", writer, images)
                    self.spent = {k: len(self.ids[k]) - done[k] for k in KINDS}
            finally:
                for module, mode in was_training:
                    module.training = mode
            writer.finish()
        return True

    def _fill(
        self, kind: str, writer: FeatureWriter, batches: Iterator[Tensor]
    ) -> None:
        """Write the features of one kind, noting the progress now and then."""
        rows, begun = len(self.ids[kind]), writer.done[kind]
        with bar(f"teacher's {kind}s", rows, unit=kind, initial=begun) as shown:
            self._write(kind, writer, batches, shown)

    def _write(
        self, kind: str, writer: FeatureWriter, batches: Iterator[Tensor], shown: Any
    ) -> None:
        for number, features in enumerate(batches, 1):
            values = features.float().cpu()
            if self.header["dtype"] == "float16":
                values = values.half()
            done = writer.done[kind]
            if not torch.isfinite(values).all():
                raise ValueError(
                    f"A {kind} feature between rows {done} and {done + len(values)} "
                    f"is not finite in {self.header['dtype']}; use dtype='float32', or "
                    "look at the model."
                )
            writer.append(kind, values.numpy())
            shown.update(len(values))
            if number % _FLUSH == 0 or writer.done[kind] == len(self.ids[kind]):
                writer.note(kind)

    def _texts(self, start: int, batch_size: int) -> Iterator[Tensor]:
        device = next(self.model.parameters()).device
        positions = self.first["text"].tolist()
        for low in range(start, len(positions), batch_size):
            chosen = positions[low : low + batch_size]
            texts = [first_caption(*_source(self.dataset, p)) for p in chosen]
            tokens = self.model.tokenizer(texts).to(device)
            yield self.model.encode_text(tokens, normalize=False)

    def _images(self, start: int, batch_size: int, workers: int) -> Iterator[Tensor]:
        device = next(self.model.parameters()).device
        pictures = _Pictures(self.dataset, self.first["image"][start:], self.transform)
        loader = DataLoader(
            pictures,
            batch_size=batch_size,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),
        )
        for images in loader:
            yield self.model.encode_image(images.to(device), normalize=False)


class _Pictures(torch.utils.data.Dataset):
    """The pictures of some samples, preprocessed."""

    def __init__(
        self,
        dataset: AvalancheDataset,
        positions: npt.NDArray[np.int64],
        transform: Callable[[Any], Tensor],
    ):
        self.dataset, self.positions, self.transform = dataset, positions, transform

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        source, position = _source(self.dataset, int(self.positions[index]))
        image = source[position][0]
        if isinstance(image, Tensor) and image.numel() == 0:
            raise ValueError(
                "The data set's images were left out; give one that has them."
            )
        return self.transform(image)


def _source(dataset: AvalancheDataset, position: int) -> tuple[CheckedPairs, int]:
    """Find the source of a sample and its position there."""
    source, place = locate(dataset, position)
    if not isinstance(source, CheckedPairs):
        raise ValueError(
            f"Items come from a {type(source).__name__}; use a data set made by "
            "make_image_text_dataset."
        )
    return source, place


def first_caption(source: CheckedPairs, position: int) -> str:
    """Return the raw English caption of a sample, the first of several.

    Sources with a method ``english(i)`` are asked for it, whatever their language.
    """
    known = known_name(source, "text", position)
    return _first(source.text(position)) if known is None else known


def known_name(source: CheckedPairs, kind: str, position: int) -> str | None:
    """Return a picture's name or a sample's English caption, None if not known."""
    method = {"image": "image_name", "text": "english"}[kind]
    read = getattr(source.pairs, method, None)  # the user's own, who may have none
    found = read(position) if callable(read) else None
    if found is None:
        return None
    return _first(found) if kind == "text" else str(found)


def _first(text: Any) -> str:
    found = text[0] if isinstance(text, (list, tuple)) else text
    if not isinstance(found, str):
        raise ValueError(
            "Captions are token ids; a teacher's features are made from strings."
        )
    return found


# ---------------------------------------------------------------- attaching
def attach_teacher_features(
    data: Any,
    store: TeacherFeatureStore,
    *,
    streams: Sequence[str] = ("train",),
    kinds: Sequence[str] = KINDS,
    images: bool = True,
    check: int | None = _CHECKED,
) -> Any:
    """Let batches carry stored features, so that no teacher has to run.

    Batches get ``teacher_image`` and ``teacher_text``, float32 ``(B, D)``, not
    normalised. They are facts like others: subsets, splits and replay keep them.

    :param data: a benchmark or a data set, before :func:`prepare_benchmark` if
        ``images=False``, else before or after it.
    :param store: with all pictures and captions of the data, see
        :func:`teacher_ids`.
    :param streams: of a benchmark, which streams get features.
    :param kinds: ``"image"``, ``"text"`` or both.
    :param images: False leaves the pictures out: none is decoded, and the batch's
        ``image`` has shape ``(B, 0)``.
    :param check: compare the English captions and file names of so many samples,
        evenly spread, with those the store was made of, where data and store know
        them; None for all, 0 for none.
    :return: a benchmark or data set of the same kind; the given one is unchanged.
    :raises ValueError: if ids are missing in the store, captions or names differ,
        or there is no such stream or kind.
    """
    require_type(kinds, (list, tuple), "kinds", "a list", error=ValueError)
    require_some(kinds, "kinds")
    require_known(kinds, KINDS, "kinds")
    if check is not None:
        as_size(check, "check", least=0, hint="None compares all")
    if isinstance(data, AvalancheDataset):
        return _attach(data, store, kinds, images, check)
    require_known(streams, data.streams, "streams")
    attached = {
        name: [
            clone_experience(e, _attach(e.dataset, store, kinds, images, check))
            for e in data.streams[name]
        ]
        for name in streams
    }
    return make_scenario({**data.streams, **attached}, data)


def _attach(
    dataset: AvalancheDataset,
    store: TeacherFeatureStore,
    kinds: Sequence[str],
    images: bool,
    check: int | None,
) -> AvalancheDataset:
    facts: dict[str, Any] = {}
    for kind in kinds:
        ids = teacher_ids(dataset, kind)
        facts[f"teacher_{kind}"] = store.column(kind, ids)
        _check_content(dataset, store, kind, ids, check)
    if not images:
        dataset = without_images(dataset)
        # evaluation merges rows of one picture, which it cannot see any more
        facts["image_key"] = teacher_ids(dataset, "image")[:, None]
    return with_facts(dataset, facts)


def _check_content(
    dataset: AvalancheDataset,
    store: TeacherFeatureStore,
    kind: str,
    ids: npt.NDArray[np.int64],
    check: int | None,
) -> None:
    """Compare what the ids stand for here and in the store."""
    count = len(ids) if check is None else min(check, len(ids))
    if kind not in store.marks or not count:
        return
    positions = np.unique(np.linspace(0, len(ids) - 1, count).astype(np.int64))
    known = store.marks[kind][store.rows(kind, ids[positions])]
    nameless = content_marks([""])[0]
    for position, mark in zip(positions.tolist(), known, strict=True):
        source, place = _source(dataset, position)
        found = known_name(source, kind, place)
        if found is not None and mark != nameless and content_marks([found])[0] != mark:
            what = "English caption" if kind == "text" else "picture"
            raise ValueError(
                f"Sample {position} has the {kind} id {ids[position]}, but its {what} "
                f"{found[:60]!r} is not what the store has under this id: it was made "
                "of other data. Make a store of these data."
            )
