"""What all suites have in common: an interface, and features that are made once."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from avalanche_clip.benchmarks.datasets.emoji import load_emoji_table
from avalanche_clip.benchmarks.items.prepare import describe
from avalanche_clip.common.checks import as_size, require_type
from avalanche_clip.common.feature_table import FeatureTable
from avalanche_clip.common.files import write_text
from avalanche_clip.common.fingerprint import tower_fingerprint
from avalanche_clip.common.progress import progress
from avalanche_clip.common.randomness import evaluating, seeded
from avalanche_clip.common.ranks import exchange, together
from avalanche_clip.distributed import gather_rows, own_rows, shares, world_size

Values = dict[str, dict[str, float]]
"""Task -> metric -> value; the first metric of a task is its main one."""

Autocast = Callable[[], AbstractContextManager[Any]]

Encode = Callable[[Sequence[str]], Tensor]
"""Texts to features."""

DETAILS = ("count", "texts")
"""Entries beside the metrics of a task: how many images, and how many texts."""

BOUNDS = ("_low", "_high")
"""Ends of the names under which the interval of a metric stands beside it."""

COLUMNS = ("checkpoint", "task", "metric", "value", "count", "low", "high")
"""Of a table of values."""

_PARTS = "encode_image encode_text tokenizer transform embed_dim image_size".split()
_PROBES = ("a photo of a dog.", "Red fox", "42%")  # short: none is cut
_LETTERS = 12  # of a word
_RESULTS = 1024


def metrics_only(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a task without counts and bounds of intervals.

    >>> metrics_only({"acc1": 0.5, "acc1_low": 0.4, "acc1_high": 0.6, "count": 96})
    {'acc1': 0.5}
    """
    extra = {*DETAILS, *(name + end for name in values for end in BOUNDS)}
    return {name: value for name, value in values.items() if name not in extra}


class Suite(ABC):
    """Tasks that a model is scored on, once or at every point of a run.

    An evaluation changes nothing: neither weights nor modes, nor the generators of
    torch, NumPy and Python. On several processes all must ask for it; each encodes a
    part, and all get the same values.

    :param name: key of the values in a run's results; settable, so that two suites of
        a kind can be attached to one run.
    :param batch_size: images, and texts, per forward pass.
    :param num_workers: processes that read images.
    """

    def __init__(self, name: str, *, batch_size: int = 128, num_workers: int = 0):
        require_type(name, str, "name", "a string")
        self.name = name
        self.missing: dict[str, str] = {}
        """Task that cannot be scored -> which file is wanted where."""
        self.features = SuiteFeatures(batch_size=batch_size, num_workers=num_workers)

    def check(self, model: Any) -> None:
        """Refuse a model or data that cannot be scored, before anything is trained.

        :param model: a dual encoder.
        :raises TypeError: for another model.
        """
        require_dual_encoder(model, self.name)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Settings and content hashes of data and prompts, as plain data.

        They are compared when a run is resumed.
        """

    @abstractmethod
    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Score a model.

        :param model: a dual encoder on ``device``; it is left as it was.
        :param device: where the model is.
        :param autocast: makes the context of the forward passes.
        :return: task -> metric -> value, fractions in [0, 1] unless the metric's own
            description says otherwise. The first metric of a task is its main one;
            ``count`` is its number of images, ``texts`` that of its texts, and
            ``<metric>_low`` and ``<metric>_high`` bound an interval, where there are
            any (see :func:`metrics_only`).
        """

    def evaluate_many(
        self, models: Mapping[str, Any], **options: Any
    ) -> dict[str, Values]:
        """Score several models or checkpoints, one after the other.

        :param models: label -> a model, or a function without arguments that makes it.
        :param options: see :meth:`evaluate`.
        :return: label -> values, as :meth:`table` takes them.
        """
        found = {}
        for label, model in progress(models.items(), self.name, unit="model"):
            made = model if isinstance(model, nn.Module) else model()
            found[label] = self.evaluate(made, **options)
        return found

    @staticmethod
    def table(
        results: Mapping[str, Values], path: str | Path | None = None
    ) -> list[dict[str, Any]]:
        """List the values of some checkpoints, one metric per row.

        :param results: label of the checkpoint -> values, such as ``results["suites"]
            [name]`` of a run.
        :param path: file to write the rows to as CSV; what is not known stays empty.
        :return: rows with the keys of :data:`COLUMNS`; ``count`` is the number of
            items, ``low`` and ``high`` bound the interval, None where there is none.
        """
        rows = []
        for checkpoint, tasks in results.items():
            for task, values in tasks.items():
                for metric, value in metrics_only(values).items():
                    of_texts = metric.startswith("text_to_image")
                    count = values.get("count")
                    count = values.get("texts", count) if of_texts else count
                    ends = (values.get(metric + end) for end in BOUNDS)
                    found = (checkpoint, task, metric, value, count, *ends)
                    rows.append(dict(zip(COLUMNS, found, strict=True)))
        if path is not None:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(path, text.getvalue())
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what later results depend on, as plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        if state:
            raise ValueError(
                f"The suite {self.name!r} has no state, but {sorted(state)} was stored "
                "under its name; attach the suite that stored it."
            )


def tokenizer_mark(tokenizer: Any) -> str:
    """Tell a tokenizer from others: by its longest row and the ids of many words."""
    words = sorted({word for n in load_emoji_table().names for word in n.split()})
    ids = np.asarray(tokenizer([word[:_LETTERS] for word in words]))
    length = getattr(tokenizer, "context_length", None)
    digest = hashlib.sha256(f"{length} {ids.shape}".encode() + ids.tobytes())
    return digest.hexdigest()[:32]


def bare(model: Any) -> Any:
    """Return a model without a wrapper for several processes."""
    return getattr(model, "module", model)


def require_dual_encoder(model: Any, name: str) -> None:
    """Raise TypeError unless a model encodes images and texts by itself.

    :param model: what was given.
    :param name: of the suite, for the message.
    """
    missing = [part for part in _PARTS if not hasattr(bare(model), part)]
    if missing:
        raise TypeError(
            f"The suite {name!r} got a {type(bare(model)).__name__}, which has no "
            f"{missing[0]}; give a DualEncoder, see create_dual_encoder."
        )


class SuiteFeatures:
    """Features and results of the last state of each tower of a model.

    An image is encoded once for each state of the image tower, a text once for each
    state of the text tower, whichever tasks ask; results are kept for both states.
    A state is what the features depend on: parameters and buffers (branches and token
    tables too), tokenizer, transform, precision, and what is no tensor, such as which
    branch is active. The last is told by what the tower makes of a few fixed inputs.

    :param batch_size: images, and texts, per forward pass.
    :param num_workers: processes that read images.
    :param max_bytes: most memory for the features of images, and of texts. What was
        used longest ago is dropped, never what was asked for last.
    """

    def __init__(
        self, *, batch_size: int = 128, num_workers: int = 0, max_bytes: int = 2**29
    ):
        self.batch_size = as_size(batch_size, "batch_size")
        self.num_workers = as_size(num_workers, "num_workers", least=0)
        self.max_bytes = as_size(max_bytes, "max_bytes", least=0)
        self.encoded = {"images": 0, "texts": 0}
        """How many were encoded so far, by all processes together."""
        self.routing: Any = None
        """Of a strategy that chooses what each image passes (see RunSuites): ``state``,
        what decides it; contexts for ``images``, with the variant of the text tower
        that each meets as their value, and for ``texts`` of a variant, -1 the plain
        tower. None: the model alone."""
        self.results: OrderedDict[Any, Any] = OrderedDict()
        self.states = {"image": "", "text": ""}
        self.images: OrderedDict[str, Tensor] = OrderedDict()
        self.forget("text")

    def forget(self, tower: str) -> None:
        """Drop the features of a tower."""
        if tower == "image":
            self.images.clear()
        else:
            self.numbers: dict[tuple[str, int | None], int] = {}
            self.texts = FeatureTable(0)

    @contextmanager
    def of(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Iterator[Encoded]:
        """Encode with a model, which is in evaluation mode inside the context.

        Modes and random generators are put back at the end.

        :param model: a dual encoder on ``device``.
        :param device: where the model is.
        :param autocast: makes the context of the forward passes.
        """
        model = bare(model)
        if self.routing is not None:
            self.routing.used = True
        with torch.no_grad(), evaluating(model), seeded(0, device):
            yield Encoded(self, model, device, autocast)


class Encoded:
    """A model's features of images and texts; see :meth:`SuiteFeatures.of`."""

    def __init__(
        self,
        cache: SuiteFeatures,
        model: Any,
        device: str | torch.device,
        autocast: Autocast,
    ):
        self.cache, self.model = cache, model
        self.device, self.autocast = torch.device(device), autocast
        self._states: dict[str, str] = {}

    def state(self, tower: str) -> str:
        """Tell what the features of a tower depend on, ``"image"`` or ``"text"``."""
        if tower not in self._states:
            digest = hashlib.sha256(tower_fingerprint(self.model, tower).encode())
            if tower == "image":
                digest.update(describe(self.model.transform(False)).encode())
                height, width = np.broadcast_to(self.model.image_size, 2).tolist()
                probe = torch.linspace(-2, 2, 3 * height * width).view(3, height, -1)
                rows = self._encode(tower, torch.stack([probe, probe.flip(1)]))
                if self.cache.routing is not None:
                    digest.update(self.cache.routing.state())
            else:
                digest.update(tokenizer_mark(self.model.tokenizer).encode())
                rows = self._encode(tower, self.model.tokenizer(list(_PROBES)))
            digest.update(rows.cpu().numpy().tobytes())
            self._states[tower] = digest.hexdigest()[:32]
            if self.cache.states[tower] != self._states[tower]:
                self.cache.states[tower] = self._states[tower]
                self.cache.forget(tower)
        return self._states[tower]

    def images(self, key: str, pictures: Any) -> Tensor:
        """Encode the images of a data set, unless their features are there.

        :param key: tells the content of the data set from that of all others.
        :param pictures: anything with a length whose elements are pictures that the
            model's transform takes.
        :return: float32 on the CPU, normalised, ``(N, D)``; not to be written to.
        """
        self.state("image")
        known = self.cache.images
        if not all(exchange(f"images of {key}", key in known)):
            stack = partial(_stacked, self.model.transform(False))
            workers = self.cache.num_workers
            known[key] = self._shared("image", pictures, stack, workers)
        known.move_to_end(key)
        held = sum(rows.nbytes for rows in known.values())
        while held > self.cache.max_bytes and len(known) > 1:
            held -= known.popitem(last=False)[1].nbytes
        return known[key][:, : self.model.embed_dim]

    def matched(self, key: str, pictures: Any) -> tuple[Tensor, Encode, int]:
        """Encode images to be compared with texts, as their products.

        Where images meet V variants of the text tower, features have V parts: texts
        one of each variant, images zeros in all but that of their own, so that a
        product is that of an image with a text of its variant. V is 1 without routing.

        :param key: see :meth:`images`.
        :param pictures: see :meth:`images`.
        :return: images ``(N, V * D)``; a function from texts to ``(M, V * D)``; V.
        """
        rows = self.images(key, pictures)
        if self.cache.routing is None:
            return rows, self.texts, 1
        met, part = self.cache.images[key][:, -1].long().unique(return_inverse=True)
        wide = rows.new_zeros(len(rows), len(met), rows.shape[1])
        wide[torch.arange(len(rows)), part] = rows

        def encode(texts: Sequence[str]) -> Tensor:
            return torch.cat([self.texts(texts, v) for v in met.tolist()], 1)

        return wide.flatten(1), encode, len(met)

    def texts(self, texts: Sequence[str], variant: int | None = None) -> Tensor:
        """Encode each different text that has no features yet, once.

        :param texts: strings, equal ones allowed.
        :param variant: of the text tower, with :attr:`SuiteFeatures.routing` only.
        :raises ValueError: if there is a routing, but no variant was named.
        :return: float32 on the CPU, normalised, one row per text, ``(M, D)``.
        """
        cache = self.cache
        if variant is None and cache.routing is not None:
            raise ValueError(
                "Each image chooses which form of the text tower its texts pass; "
                "compare features of Encoded.matched(key, pictures)."
            )
        self.state("text")
        keys = [(text, variant) for text in texts]
        number = len(cache.numbers.keys() | set(keys))
        if cache.numbers and 4 * self.model.embed_dim * number > cache.max_bytes:
            cache.forget("text")
        for one in keys:
            cache.numbers.setdefault(one, len(cache.numbers))
        cache.texts.extend(len(cache.numbers))
        ids = np.array([cache.numbers[one] for one in keys], dtype=np.int64)
        wanted = np.unique(ids[~cache.texts.known(ids)])
        counts = exchange("texts", len(wanted))
        if len(set(counts)) > 1:
            cache.forget("text")
            return self.texts(texts, variant)
        if any(counts):
            names = list(cache.numbers)
            new = [names[number][0] for number in wanted]
            rows = self._shared("text", new, self.model.tokenizer, variant=variant)
            cache.texts.put(wanted, rows)
        found = cache.texts.get(ids)
        assert found is not None
        return found

    def result(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return what is computed from this model's features, computed once.

        :param key: tells data, prompts and settings from all others; hashable.
        :param compute: makes plain data.
        """
        full = (key, self.state("image"), self.state("text"))
        known = self.cache.results
        if not all(exchange(f"result {key}", full in known)):
            known[full] = compute()
        known.move_to_end(full)
        while len(known) > _RESULTS:
            known.popitem(last=False)
        return copy.deepcopy(known[full])

    def _shared(
        self,
        tower: str,
        items: Any,
        collate: Callable[[list[Any]], Tensor],
        num_workers: int = 0,
        variant: int | None = None,
    ) -> Tensor:
        """Let each process encode some of the batches, and gather their rows.

        Batches are those of a single process, so that features are, too.
        """
        size, count = self.cache.batch_size, len(items)
        sizes = shares(-(-count // size), world_size())
        own = own_rows(sizes)
        loader: Any = DataLoader(
            Subset(items, range(own.start * size, min(own.stop * size, count))),
            size,
            collate_fn=collate,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        routed = tower == "image" and self.cache.routing is not None
        rows = torch.zeros(0, self.model.embed_dim + routed, device=self.device)
        with together(f"encoding {tower}s"):
            seen = progress(loader, f"encoding {tower}s")
            found = (self._encode(tower, batch, variant) for batch in seen)
            rows = torch.cat([rows, *found])
        self.cache.encoded[f"{tower}s"] += count
        return gather_rows(rows).cpu()

    def _encode(self, tower: str, batch: Tensor, variant: int | None = None) -> Tensor:
        """Features; of routed images with the variant of texts in a last column."""
        routing, batch = self.cache.routing, batch.to(self.device)
        encode = getattr(self.model, f"encode_{tower}")
        context: AbstractContextManager[Any] = nullcontext()
        if routing is not None:
            number = -1 if variant is None else variant
            image = tower == "image"
            context = routing.images(batch) if image else routing.texts(number)
        with context as met, self.autocast():
            rows: Tensor = encode(batch).float()
        return rows if met is None else torch.cat([rows, met.to(rows)[:, None]], 1)


def _stacked(transform: Callable[[Any], Tensor], pictures: Sequence[Any]) -> Tensor:
    return torch.stack([transform(picture) for picture in pictures])
