"""Rows by name that come as a stream: a streamed data set of Hugging Face's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avalanche_clip.benchmarks.datasets.fields import Field, as_picture, value_of
from avalanche_clip.benchmarks.datasets.rows import captions_of, guarded, undecoded
from avalanche_clip.benchmarks.items.skipped import skipped_for
from avalanche_clip.benchmarks.items.streamed import RawItem, StreamedItems
from avalanche_clip.common.checks import as_size

_ROWS = 16  # that Hugging Face hands over at a time


class RowStream(StreamedItems):
    """Pictures and captions of a streamed data set of Hugging Face's.

    The data of an experience, as :class:`ShardStream` is: training draws the planned
    number of batches, in an order drawn anew for each epoch; replay and splits need
    positions. With at least as many shards as readers each reads shards of its own,
    else each reads all rows and keeps its part. The id of a sample is a hash of its
    picture and caption. What cannot be read on stops the run in any case.

    :param rows: a ``datasets.IterableDataset``, such as ``load_dataset(...,
        streaming=True, split="train")`` gives; one step of time, which its ``filter``
        can cut out.
    :param num_samples: of one pass.
    :param root: see :func:`read_rows`, as the next two.
    :param image: field of the picture.
    :param caption: field of the caption or captions.
    :param buffer: rows that are mixed, per reader.
    :param on_error: about rows that cannot be used, see :func:`read_rows`.
    :raises TypeError: if these are no streamed rows.

    :ivar skipped: what was left out until now, by cause; None with ``"raise"``.
    """

    def __init__(
        self,
        rows: Any,
        num_samples: int,
        root: str | Path | None = "",
        *,
        image: Field = "image",
        caption: Field = "caption",
        buffer: int = 1000,
        on_error: str = "raise",
    ) -> None:
        super().__init__(num_samples)
        if not hasattr(rows, "num_shards") or hasattr(rows, "__len__"):
            raise TypeError(
                f"rows is a {type(rows).__name__}; give a datasets.IterableDataset, or "
                "read_rows rows that have a length."
            )
        self.rows, self.root, self.fields = undecoded(rows)[0], root, (image, caption)
        self.buffer, self.skipped = as_size(buffer, "buffer"), skipped_for(on_error)
        self.source = f"the rows of the {type(rows).__name__}"

    def fingerprint(self) -> str:
        """Hash of what is known of the data set, and of the fields."""
        rows = self.rows
        facts = (rows.info.dataset_name, rows.split, rows.num_shards, rows.features)
        known = repr((len(self), *facts, *map(str, self.fields)))
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def one_pass(
        self, part: int, parts: int, seeds: tuple[int, ...] | None, number: int
    ) -> Iterator[Any]:
        """Yield the rows of one reader in a pass, see :meth:`samples`."""
        rows, start = self.rows, part
        if seeds is not None:
            start = (part + number) % parts
        own = rows.num_shards >= parts
        if own:
            rows = rows.shard(parts, start, contiguous=False)
        if seeds is not None:
            draw = np.random.default_rng([*seeds, number // parts])
            rows = rows.shuffle(int(draw.integers(2**31)), buffer_size=self.buffer)
        # Not `iter(rows)`, which would leave out the shards of other workers once more.
        batches = guarded(rows.iter(_ROWS), self.source)
        found = (
            dict(zip(batch, cells, strict=True))
            for batch in batches
            for cells in zip(*batch.values(), strict=True)
        )
        return found if own else islice(found, start, None, parts)

    def raw_item(self, raw: Any) -> RawItem:
        """Decode a row."""
        image, caption = self.fields
        text, value = captions_of(raw, caption, self.source), value_of(raw, image, "")
        content = value.tobytes() if isinstance(value, Image.Image) else repr(value)
        known = content if isinstance(content, bytes) else content.encode()
        digest = hashlib.blake2b(repr(text).encode() + known, digest_size=8).digest()
        picture = as_picture(value, self.root, self.source)
        return picture, text, int.from_bytes(digest, "big") >> 1
