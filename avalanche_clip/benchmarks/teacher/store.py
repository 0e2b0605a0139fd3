"""Features of a frozen teacher on disk, read row by row from memory maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avalanche_clip.benchmarks.teacher.files import (
    DTYPES,
    KINDS,
    read_arrays,
    read_header,
)
from avalanche_clip.common.arrays import read_npy
from avalanche_clip.common.checks import (
    require_alike,
    require_array,
    require_choice,
    require_known,
    require_some,
)
from avalanche_clip.common.feature_table import FeatureTable

_MISSING_SHOWN = 5


class TeacherFeatureStore:
    """Raw (unnormalised) features of pictures and English captions by id.

    On disk a store is a folder: ``header.json`` (which model, which data, sizes
    and checksums) and per kind the features ``{kind}_features.npy`` ``(N, D)``,
    their ids ``{kind}_ids.npy`` and marks ``{kind}_marks.npy``, a hash of each
    caption or file name. Each file holds its own checksum. Features are mapped into
    memory, so that worker processes share the pages. Copies and pickles refer to the
    files, which they do not read again. :func:`precompute_teacher_features` makes
    stores.

    :param features: arrays ``(N, D)`` of kinds ``"image"`` and ``"text"``, float16 or
        float32; one of them may be missing.
    :param ids: ids of the rows, ascending; a kind without has ids 0..N-1.
    :param marks: uint64 hashes of the rows' contents, 0 where unknown.
    :param header: what is known of the origin; empty for released arrays.
    :param source: makes the store again, for pickles; None stores the arrays
        themselves.
    :raises ValueError: if shapes do not fit together.
    """

    def __init__(
        self,
        features: dict[str, np.ndarray],
        *,
        ids: dict[str, npt.NDArray[np.int64]] | None = None,
        marks: dict[str, npt.NDArray[np.uint64]] | None = None,
        header: dict[str, Any] | None = None,
        source: Callable[[], TeacherFeatureStore] | None = None,
    ) -> None:
        self.features, self.ids, self.marks = features, ids or {}, marks or {}
        self.header = header or {}
        self._source = source
        require_some(features, f"features of {' or '.join(KINDS)}")
        require_known(features, KINDS, "kinds of features")
        for kind, array in features.items():
            give = "a matrix (N, D)"
            require_array(array, f"{kind} features", "* *", "float", give=give)
            require_choice(f"type of {kind} features", array.dtype.name, DTYPES)
            for name, columns in (("ids", self.ids), ("marks", self.marks)):
                if kind in columns:
                    what, count = f"{kind} {name}", str(len(array))
                    require_array(columns[kind], what, count, "integer", give="per row")
        require_alike("give matrices of one width", ("columns",), **features)
        #: width D of the features
        self.dim = int(next(iter(features.values())).shape[1])

    # ------------------------------------------------------------ opening
    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Any = None,
        data: str | None = None,
        verify: bool = True,
    ) -> TeacherFeatureStore:
        """Open a finished store.

        :param path: its folder.
        :param model: the teacher that must have made it, see :meth:`check_model`.
        :param data: the fingerprint of the data it must hold, see
            :func:`data_fingerprint`.
        :param verify: read all features and compare their checksums; False leaves
            them out (all else is compared).
        :raises FileNotFoundError: if there is no store.
        :raises ValueError: if a file is damaged, or the store is of another model
            or of other data.
        """
        path = Path(path).expanduser()
        header = read_header(path)
        read = read_arrays(path, header, verify)
        store = cls(
            **read,
            header=header,
            # Another process need not read it all once more.
            source=partial(cls.open, path.resolve(), data=header["data"], verify=False),
        )
        if model is not None:
            store.check_model(model)
        if data not in (None, header["data"]):
            raise ValueError(
                f"{path} holds features of other data (fingerprint {header['data']}) "
                f"than these ({data}): pictures, captions or ids differ. Make a store "
                "for these under another path."
            )
        return store

    @classmethod
    def from_released(
        cls,
        texts: str | Path | None,
        images: str | Path | None = None,
        line_rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
    ) -> TeacherFeatureStore:
        """Open arrays as released with CLL-CLIP, ids being row numbers.

        Nothing is known of their model; a check of it raises.

        :param texts: ``*_sentence_embeddings.npy`` ``(lines, D)``.
        :param images: ``*_vision_embeddings.npy`` ``(distinct pictures, D)``.
        :param line_rows: where equal captions share a row of ``texts``: row of each
            caption line (see :func:`read_line_rows`); -1 for none.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if a file is damaged, or its array is no matrix of floats.
        """
        features = {}
        for kind, path in (("text", texts), ("image", images)):
            if path is not None:
                features[kind] = read_npy(path, mmap=True)
        try:
            store = cls(
                features, source=partial(cls.from_released, texts, images, line_rows)
            )
        except ValueError as error:
            names = " and ".join(str(p) for p in (texts, images) if p is not None)
            raise ValueError(f"{names or 'no file'}: {error}") from error
        if line_rows is not None:
            rows = np.asarray(line_rows, dtype=np.int64)
            if "text" not in features or rows.max(initial=-1) >= len(features["text"]):
                raise ValueError(
                    f"line_rows go up to {rows.max(initial=-1)}, beyond the sentence "
                    "features; both must belong to the same release."
                )
            store._line_rows = rows
        return store

    _line_rows: npt.NDArray[np.int64] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is not None:
            return self._source, ()
        arrays = {k: np.asarray(v) for k, v in self.features.items()}
        known: dict[str, Any] = {"ids": self.ids, "marks": self.marks}
        return partial(TeacherFeatureStore, header=self.header, **known), (arrays,)

    def __deepcopy__(self, memo: Any) -> TeacherFeatureStore:
        return self

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(a)} {k}s" for k, a in self.features.items())
        return f"TeacherFeatureStore({sizes}, dim={self.dim})"

    # ------------------------------------------------------------ checking
    def check_model(self, model: Any, towers: Sequence[str] = KINDS) -> None:
        """Raise ValueError unless the features come from this model.

        :param model: object with ``state_fingerprint(tower)``.
        :param towers: which towers must agree; a student whose text tower has moved
            shares the image tower with its teacher.
        """
        known = self.header.get("model")
        if known is None:
            raise ValueError(
                "The features were not made by this package, so their model is not "
                "known; open them without model=, if you know that it is the right one."
            )
        for tower in towers:
            found = model.state_fingerprint(tower)
            if found != known[tower]:
                raise ValueError(
                    f"The store holds features of another {tower} tower (fingerprint "
                    f"{known[tower]}) than this model's ({found}). Make a store for "
                    "this model under another path; it must be made before training."
                )

    # ------------------------------------------------------------- reading
    def rows(self, kind: str, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Find the rows of ids.

        :param kind: ``"image"`` or ``"text"``.
        :param ids: integers, ``(N,)``.
        :return: int64 ``(N,)``.
        :raises ValueError: if there are no such features, or ids are missing.
        """
        if kind not in self.features:
            raise ValueError(f"The store has no {kind} features.")
        wanted = lookup = np.asarray(ids, dtype=np.int64)
        if kind == "text" and self._line_rows is not None:
            lines = FeatureTable(len(self._line_rows), self._line_rows)
            at = lines.positions(wanted)
            lookup = np.where(at < 0, -1, self._line_rows[at])
        count = len(self.features[kind])
        table = FeatureTable(self.ids.get(kind, count), self.features[kind])
        rows = table.positions(lookup)
        lost = rows < 0
        if lost.any():
            shown = np.unique(wanted[lost])[:_MISSING_SHOWN].tolist()
            raise ValueError(
                f"{int(lost.sum())} of {len(wanted)} {kind} ids are not in the store "
                f"(for example {shown}); make it of data that hold all pictures and "
                "captions."
            )
        return rows

    def images(self, ids: npt.ArrayLike) -> Tensor:
        """Return image features ``(N, D)``, float32, not normalised."""
        return torch.from_numpy(self.column("image", ids)[:])

    def texts(self, ids: npt.ArrayLike) -> Tensor:
        """Return text features ``(N, D)``, float32, not normalised."""
        return torch.from_numpy(self.column("text", ids)[:])

    def column(self, kind: str, ids: npt.ArrayLike) -> StoredRows:
        """Return the features of samples as a column that reads when indexed.

        :param kind: ``"image"`` or ``"text"``.
        :param ids: id of each sample, ``(N,)``.
        :raises ValueError: see :meth:`rows`.
        """
        return StoredRows(self, kind, self.rows(kind, ids))


class StoredRows(Sequence[np.ndarray]):
    """One feature per sample: a view of the rows of a store.

    :param store: where the features are.
    :param kind: ``"image"`` or ``"text"``.
    :param rows: row of each sample, int64 ``(N,)``.
    """

    def __init__(
        self, store: TeacherFeatureStore, kind: str, rows: npt.NDArray[np.int64]
    ) -> None:
        self.store, self.kind, self._rows = store, kind, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self.store.features[self.kind][self._rows[index]].astype(np.float32)


def content_marks(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Hash texts to 64 bits each, the same everywhere; never 0.

    >>> content_marks(["a", "a"]).tolist() == [content_marks(["a"])[0]] * 2
    True
    """
    found = [
        int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "big") or 1
        for t in texts
    ]
    return np.array(found, dtype=np.uint64)


def data_fingerprint(
    ids: dict[str, npt.NDArray[np.int64]], marks: dict[str, npt.NDArray[np.uint64]]
) -> str:
    """Hash which pictures and captions a store is made of, 32 hex digits.

    :param ids: distinct ids per kind, ascending.
    :param marks: :func:`content_marks` of the same rows.
    """
    digest = hashlib.sha256()
    for kind in KINDS:
        digest.update(f"|{kind}|".encode())
        digest.update(np.ascontiguousarray(ids[kind], dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(marks[kind], dtype="<u8").tobytes())
    return digest.hexdigest()[:32]
