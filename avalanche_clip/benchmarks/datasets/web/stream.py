"""Samples of tar archives as a stream, through the pipeline of webdataset."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.datasets.web.pairs import CAPTIONS, SampleReader
from avalanche_clip.benchmarks.datasets.web.tar_index import find_tars
from avalanche_clip.benchmarks.datasets.web.tars import read_member, scan
from avalanche_clip.benchmarks.items.skipped import SampleFault, leave_out, skipped_for
from avalanche_clip.benchmarks.items.streamed import RawItem, StreamedItems
from avalanche_clip.common.checks import as_size

Sample = dict[str, Any]


class ShardStream(StreamedItems):
    """Pictures and captions of tar archives, archive after archive.

    The data of an experience that is trained or evaluated without an index: archives
    are read from their beginning, in an order drawn anew for each epoch, by each
    process and worker its own, and samples are mixed in a buffer. Training draws the
    planned number of batches, however many samples a reader has: archives follow each
    other without end, each as often as the others. The id of a sample is made of its
    name and that of its archive and folder.

    Needs webdataset: ``pip install "avalanche-clip[data]"``.

    :param tars: folder of the archives, or their paths, see :func:`find_tars`.
    :param num_samples: of one pass, as ``sizes.json`` of the archives has it.
    :param captions: see :class:`SampleReader`; None for the usual places.
    :param buffer: samples that are mixed, per reader; their bytes are held in memory.
    :param on_error: about what cannot be read: ``"raise"``, or ``"skip"``: it is left
        out and counted.
    :raises FileNotFoundError: if there are no archives.
    :raises ImportError: if webdataset is not installed.

    :ivar skipped: what was left out until now, by cause; None with ``"raise"``.

    >>> stream = ShardStream("shards/2017", 10_000)  # doctest: +SKIP
    >>> step = make_experience(stream, time_label="2017")  # doctest: +SKIP
    """

    def __init__(
        self,
        tars: str | Path | Sequence[str | Path],
        num_samples: int,
        *,
        captions: str | Sequence[str] | None = None,
        buffer: int = 1000,
        on_error: str = "raise",
    ) -> None:
        super().__init__(num_samples)
        _webdataset()
        self.tars = find_tars(tars)
        self.source = f"{self.tars[0]} and the other archives"
        self.reader = SampleReader(CAPTIONS if captions is None else captions)
        self.buffer = as_size(buffer, "buffer")
        self.skipped = skipped_for(on_error)

    def fingerprint(self) -> str:
        """Hash of names and sizes of the archives, and where captions are."""
        sizes = [path.stat().st_size if path.is_file() else -1 for path in self.tars]
        facts = [*map(_short, self.tars)], sizes, self.reader.captions
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def samples(
        self, part: int, parts: int, seeds: tuple[int, ...] | None
    ) -> Iterator[RawItem]:
        """Yield the samples of one of several readers, see :class:`StreamedItems`.

        Each pass is mixed in itself: with one reader no sample comes again before all
        have come. In ``parts`` passes every reader has each archive once.

        :raises ValueError: if there are fewer archives than readers that train, or
            nothing in all archives can be read.
        """
        if seeds is not None and parts > len(self.tars):
            raise ValueError(
                f"{len(self.tars)} archives cannot be read by {parts} readers; use "
                "fewer workers or processes, or smaller archives."
            )
        return super().samples(part, parts, seeds)

    def one_pass(
        self, part: int, parts: int, seeds: tuple[int, ...] | None, number: int
    ) -> Iterator[Sample]:
        """Yield the undecoded samples of a pass, see :meth:`pipeline`."""
        return iter(self.pipeline(part, parts, seeds, number))

    def pipeline(
        self,
        part: int = 0,
        parts: int = 1,
        seeds: tuple[int, ...] | None = None,
        number: int = 0,
    ) -> Any:
        """Return webdataset's pipeline of undecoded samples, to add stages to.

        A sample has the bytes of its members by ending, ``__key__`` and ``__url__``.

        :param part: see :meth:`samples`, as the next two.
        :param number: of the pass.
        """
        wds, order, start = _webdataset(), np.arange(len(self.tars)), part
        if seeds is not None:
            order = np.random.default_rng([*seeds, number // parts]).permutation(order)
            start = (part + number) % parts
        own = [self.tars[place] for place in order[start::parts].tolist()]
        stages = [lambda: iter(own), self._read]
        if seeds is not None:
            mixing = random.Random(str((*seeds, number, part)))
            stages.append(wds.shuffle(self.buffer, initial=self.buffer, rng=mixing))
        return wds.DataPipeline(*stages)

    def _read(self, shards: Iterator[Path]) -> Iterator[Sample]:
        """Yield the samples of archives, undecoded."""
        tell = partial(leave_out, skipped=self.skipped)
        for path in shards:
            for key, members in scan(path, tell).items():
                sample: Sample = {}
                try:
                    for ending, place in members.items():
                        sample[ending] = read_member(path, place, f"{path}, {key}")
                    sample.update(__key__=key, __url__=str(path))
                except SampleFault as fault:
                    tell(fault)
                else:
                    yield sample

    def raw_item(self, sample: Sample) -> RawItem:
        """Decode a sample."""
        where = f"{sample['__url__']}, {sample['__key__']}"
        image = self.reader.picture(sample.get, where)
        text = self.reader.text(sample.get, where)
        if not all(map(str.strip, [text] if isinstance(text, str) else text)):
            raise SampleFault("no caption", f"{where} has an empty caption.")
        name = f"{_short(Path(sample['__url__']))}/{sample['__key__']}".encode()
        number = hashlib.blake2b(name, digest_size=8).digest()
        return image, text, int.from_bytes(number, "big") >> 1


def _short(path: Path) -> str:
    """Name of an archive with its folder, which moves with it."""
    return f"{path.absolute().parent.name}/{path.name}"


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(
            'Streams of archives need webdataset: pip install "avalanche-clip[data]". '
            "open_tar_index and TarPairs read the same archives without it."
        ) from error
    return webdataset
