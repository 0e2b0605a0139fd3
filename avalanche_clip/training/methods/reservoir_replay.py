"""Experience replay and dark experience replay with a reservoir of samples.

Source: Chaudhry et al., 2019 (ER, arXiv 1902.10486), Buzzega et al., NeurIPS 2020
(DER, arXiv 2004.07211), as used for languages by Yang et al., AAAI 2024 (CLL-CLIP,
arXiv 2401.17186) and the released code, from which this differs where said below.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.batch import ImageTextBatch
from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    concatenate,
    item_fields,
)
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.training.templates.class_scoring import PromptBatch
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.order import SeededItems, TrainLoader
from avalanche_clip.training.templates.visits import Step, find_step, read_step

TARGETS = ("teacher", "student")
FROM_MEMORY = "from_memory"
TARGET = "replay_target"


def reservoir_slots(
    seen: int, count: int, size: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Choose where a reservoir puts the next items of a stream.

    Item k of the stream (counted from 0) fills slot k while there is room; later it
    draws r from 0..k and replaces slot r if r < size. So each of the items seen is
    held with equal probability.

    :param seen: items offered before.
    :param count: items offered now.
    :param size: slots of the reservoir.
    :param generator: source of the draws; items that fill the reservoir draw nothing.
    :return: int64 ``(count,)``: slot of each item, -1 for none. Where a slot repeats,
        the last item has it.

    >>> reservoir_slots(0, 3, 5, np.random.default_rng(0)).tolist()
    [0, 1, 2]
    """
    slots = np.arange(seen, seen + count, dtype=np.int64)
    late = slots >= size
    # The draw of item k is among k + 1 numbers.
    drawn = generator.integers(0, slots[late] + 1)
    slots[late] = np.where(drawn < size, drawn, -1)
    return slots


@dataclass(eq=False)
class ReservoirReplayPlugin(MethodPlugin, supports_distributed=True):
    """Append samples of earlier experiences to each batch (ER and DER).

    Every training sample is offered once to one reservoir over the whole stream.
    From the second experience on, as many samples as a batch has are drawn from it
    and appended to the batch; the number of steps stays. The batch then has the
    entry ``from_memory`` (0 or 1 per sample).

    With a cross-lingual loss (strategy :class:`CLLCLIP`), the distance to the
    teacher is taken over the new samples only, and ``weight`` times the mean squared
    distance of the raw text features of the old ones to their target is added:
    the teacher's feature (ER), or the student's own at the moment the sample was
    stored (DER). Contrastive losses see the whole batch. With other strategies ER
    adds no term beyond the larger batch, DER that distance.

    On class names (:class:`ClassNameTemplate`) the text of a sample is the prompt of
    its class, and the label space ``"current"`` holds the classes that may be drawn
    in the experience: those stored at its start. ``"own"`` has no place for old
    samples and is refused.

    Memory: where each stored sample is and the seed of its augmentation, so that an
    old item is read again as it was, with the same caption, through the tokenizer of
    today; for DER also one feature each. Time: the old items are read in the main
    process, and a step takes twice as many samples.

    The source offers every sample again in each epoch, which ``duplicates=True``
    does too.

    Steps may come in any order. When one comes again, samples of it are not drawn,
    and what was offered in an earlier visit is not offered again (unless
    ``duplicates``).

    With several processes each holds the same reservoir, of the whole batch's
    samples, and appends its part of what is drawn.

    :param buffer_size: samples held over the whole stream, at least 1.
    :param target: ``"teacher"`` (ER) or ``"student"`` (DER).
    :param weight: of the distance on old samples, ``>= 0``.
    :param duplicates: offer a sample again each time it is trained on.
    :raises ValueError: for values outside these ranges.
    """

    only_one = True
    keeps_per_weight_state = False
    replays_data = True

    buffer_size: int = 8000
    _: KW_ONLY
    target: str = "teacher"
    weight: float = 1.0
    duplicates: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        as_size(self.buffer_size, "buffer_size")
        require_choice("target", self.target, TARGETS)
        as_finite(self.weight, "weight", low=0)
        self.seen = 0
        """Samples offered to the reservoir so far."""
        # Per slot: step (its place in the list), position in its data, seed of its
        # augmentation.
        self._steps: list[Step] = []
        self._slots = np.empty((0, 2), dtype=np.int64)
        self._seeds = np.empty(0, dtype=np.uint64)
        self._targets: Tensor | None = None
        # Per step: which samples were offered.
        self._offered: dict[Step, npt.NDArray[np.bool_]] = {}
        self._datasets: dict[Step, Any] = {}
        self._ids: tuple[np.ndarray, np.ndarray] | None = None
        self._classes: tuple[int, ...] = ()
        self._new: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._sizes: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def __bool__(self) -> bool:
        return True

    @property
    def stored(self) -> npt.NDArray[np.int64]:
        """Index of its experience and position there of each stored sample.

        int64 ``(N, 2)``.
        """
        places = np.array([step.place for step in self._steps], dtype=np.int64)
        return np.column_stack([places[self._slots[:, 0]], self._slots[:, 1]])

    def replayed_data(self, strategy: Any) -> Any:
        """Return what may be drawn in the coming experience, None if nothing.

        :param strategy: says which step is running.
        :return: one data set with the stored samples, for those who have to know
            which captions will occur.
        """
        parts, slots = [], self._slots[self._drawable(strategy)]
        for place in np.unique(slots[:, 0]).tolist():
            rows = np.unique(slots[slots[:, 0] == place, 1])
            parts.append(self._datasets[self._steps[place]].subset(rows.tolist()))
        return concatenate(parts) if parts else None

    def _drawable(self, strategy: Any) -> npt.NDArray[np.int64]:
        """Slots to draw from: all, but for those of a step that comes again."""
        visits = strategy.visits
        if not visits.earlier_visits or visits.current not in self._steps:
            return np.arange(len(self._slots))
        return np.flatnonzero(self._slots[:, 0] != self._steps.index(visits.current))

    # ------------------------------------------------------------- training
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note where the samples of this experience are."""
        dataset, step = strategy.experience.dataset, strategy.visits.current
        self._datasets[step] = dataset
        if step not in self._steps:
            self._steps.append(step)
        ids = attribute_array(dataset, "sample_id")
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order], order
        self._offered.setdefault(step, np.zeros(len(dataset), dtype=bool))
        self._classes = self._classes_of(self.replayed_data(strategy))

    def _classes_of(self, dataset: Any) -> tuple[int, ...]:
        """Classes of a data set, ascending; none without data or targets."""
        if dataset is None or "targets" not in item_fields(dataset):
            return ()
        return tuple(np.unique(attribute_array(dataset, "targets")).tolist())

    def replayed_classes(self, strategy: Any) -> tuple[int, ...]:
        """Return the classes that may be drawn in the running experience.

        :param strategy: unused; part of the interface.
        """
        return self._classes

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Append stored samples to the batch."""
        batch = strategy.mbatch[0]
        rank = distributed.rank()
        self._sizes = distributed.exchange("the new samples of a step", len(batch))
        new, world = sum(self._sizes), len(self._sizes)
        self._new = self._batch_seeds(strategy, new)
        slots = self._drawable(strategy)
        count = min(new, len(slots))
        if strategy.clock.train_exp_counter == 0 or not count:
            return
        drawn = self._generator(strategy, 0).choice(
            len(slots), size=count, replace=False
        )
        parts = distributed.shares(count, world)
        chosen = slots[drawn[sum(parts[:rank]) :][: parts[rank]]]
        targets = self._targets
        if targets is not None:
            shape = len(batch), targets.shape[1]
            batch[TARGET] = targets.new_zeros(shape).to(strategy.device)
        if not len(chosen):  # marked as the batches of the other processes
            batch[FROM_MEMORY] = torch.zeros_like(strategy.mbatch[1])
            return
        old = self._read(strategy, chosen)
        if isinstance(batch, PromptBatch):
            strategy.check_ids(old[1])
        old = [part.to(strategy.device) for part in old]
        if targets is not None:
            old[0][TARGET] = targets[torch.from_numpy(chosen)].to(strategy.device)
        pad_id = int(getattr(strategy.model.tokenizer, "pad_id", 0))
        strategy.mbatch = [
            join_batches(batch, old[0], pad_id),
            *(
                torch.cat(pair)
                for pair in zip(strategy.mbatch[1:], old[1:], strict=True)
            ),
        ]

    def _read(self, strategy: Any, chosen: npt.NDArray[np.int64]) -> list[Any]:
        """Read stored samples again, as they were."""
        items = []
        for slot in chosen.tolist():
            place, position = self._slots[slot].tolist()
            data = SeededItems(self._datasets[self._steps[place]].train())
            items.append(data[position, int(self._seeds[slot])])
        return strategy.experience.dataset.collate_fn(items)

    def _batch_seeds(self, strategy: Any, size: int) -> npt.NDArray[np.uint64]:
        """Seeds that the items of this batch were read with, in all processes."""
        clock, loader = strategy.clock, strategy.dataloader
        if isinstance(loader, TrainLoader):
            order, number = loader.order, clock.train_epoch_iterations
            if order.continuous:
                number = clock.train_exp_iterations
            return order.sample_seeds(clock.train_exp_epochs, number, size)
        seeds = self._generator(strategy, 2).integers(0, 2**63, size=size)
        return seeds.astype(np.uint64)

    def _generator(self, strategy: Any, purpose: int) -> np.random.Generator:
        step = strategy.clock.train_exp_iterations
        number = strategy.visits.seed_number
        parts = [strategy.seed & (2**63 - 1), number, step, purpose]
        return np.random.default_rng(parts)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Weigh the distances of new and of old samples."""
        batch = strategy.mb_x
        if FROM_MEMORY not in batch:
            return
        aux = strategy.global_features.aux or {}
        old = distributed.gather_rows(batch[FROM_MEMORY]).bool()
        student = _sample_texts(strategy)
        teacher = aux.get("teacher_text")
        value = student.new_zeros(())
        if teacher is not None:
            distance = (student - teacher.to(student.dtype)).square().mean(dim=1)
            share = getattr(strategy._criterion, "cross_lingual_weight", 0.0)
            # The loss of the whole batch becomes that of its new samples.
            value = share * (distance[~old].mean() - distance.mean())
        target = teacher
        if self.target == "student":
            target = distributed.gather_rows(batch[TARGET])
        if target is not None and self.weight:
            gap = student[old] - target[old].to(student.dtype)
            value = value + self.weight * gap.square().mean()
        if value.requires_grad:
            strategy.add_loss("replay", value)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Offer the new samples of this step to the reservoir."""
        assert self._ids is not None
        ordered, order = self._ids
        new = strategy.mb_x["sample_id"][: self._sizes[distributed.rank()]]
        ids = distributed.gather_rows(new, self._sizes).cpu().numpy()
        found = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        # Samples that another plugin has pooled are no new ones.
        own = ordered[found] == ids
        positions = order[found]
        offered = self._offered[strategy.visits.current]
        if not self.duplicates:
            own &= ~offered[positions]
        offered[positions[own]] = True
        rows = np.flatnonzero(own)
        generator = self._generator(strategy, 1)
        slots = reservoir_slots(self.seen, len(rows), self.buffer_size, generator)
        self.seen += len(rows)
        kept = rows[slots >= 0]
        self._store(strategy, slots[slots >= 0], kept, positions[kept])

    def _store(
        self,
        strategy: Any,
        slots: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> None:
        """Put rows of the whole batch into slots; the last one of a slot stays."""
        if not len(slots):
            return
        size = max(len(self._slots), int(slots.max()) + 1)
        grown = size - len(self._slots)
        if grown:
            self._slots = np.concatenate([self._slots, np.zeros((grown, 2), np.int64)])
            self._seeds = np.concatenate([self._seeds, np.zeros(grown, np.uint64)])
        last = {slot: k for k, slot in enumerate(slots.tolist())}
        keep = np.array(list(last.values()))
        slots, rows, positions = slots[keep], rows[keep], positions[keep]
        self._slots[slots, 0] = self._steps.index(strategy.visits.current)
        self._slots[slots, 1] = positions
        self._seeds[slots] = self._new[rows]
        if self.target == "student":
            features = _sample_texts(strategy).detach()
            # Each process's part of the features ends with its old samples.
            starts = np.cumsum([0, *self._sizes])
            owner = np.searchsorted(starts, rows, side="right") - 1
            parts = np.cumsum([0, *strategy.batch_sizes])
            place = parts[owner] + rows - starts[owner]
            values = features[torch.from_numpy(place).to(features.device)].float().cpu()
            old = values.new_zeros(0, values.shape[1])
            old = old if self._targets is None else self._targets
            if grown:
                old = torch.cat([old, values.new_zeros(grown, values.shape[1])])
            old[torch.from_numpy(slots)] = values
            self._targets = old

    # --------------------------------------------------------------- storage
    def state_dict(self) -> dict[str, Any]:
        """Return what is stored, as places in the benchmark's data."""
        sizes = [len(self._offered[step]) for step in self._steps]
        offered = np.concatenate([np.empty(0, bool), *self._offered.values()])
        return {
            "seen": self.seen,
            "steps": [list(step) for step in self._steps],
            "slots": torch.from_numpy(self._slots.copy()),
            "seeds": torch.from_numpy(self._seeds.astype(np.int64)),
            "targets": None if self._targets is None else self._targets.clone(),
            "sizes": sizes,
            "offered": torch.from_numpy(np.packbits(offered)),
            "classes": list(self._classes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.seen = int(state["seen"])
        self._steps = [read_step(step) for step in state["steps"]]
        self._slots = state["slots"].cpu().numpy().copy()
        self._seeds = state["seeds"].cpu().numpy().astype(np.uint64)
        targets = state["targets"]
        self._targets = None if targets is None else targets.cpu().clone()
        sizes = state["sizes"]
        bits = np.unpackbits(state["offered"].cpu().numpy(), count=sum(sizes))
        parts = np.split(bits.astype(bool), np.cumsum(sizes)[:-1])
        self._offered = dict(zip(self._steps, parts, strict=False))
        self._classes = tuple(int(i) for i in state["classes"])

    def restore_data(self, benchmark: Any) -> None:
        """Find the data of stored samples in the benchmark of a resumed run."""
        for step in self._steps:
            self._datasets[step] = find_step(benchmark, step).dataset


def _sample_texts(strategy: Any) -> Tensor:
    """Raw text features of the samples of the whole batch, ``(B, D)``."""
    features = raw_text_features(strategy.global_features)
    if isinstance(strategy.mb_x, PromptBatch):  # one text per class
        features = features[distributed.gather_rows(strategy.mb_y)]
    return features


def raw_text_features(output: Any) -> Tensor:
    """Return text features before normalisation, ``(B, D)``, with gradient.

    :param output: of a model or strategy, with ``text_raw`` or ``text_norm`` in
        ``aux``.
    """
    aux = output.aux or {}
    if "text_raw" in aux:
        return aux["text_raw"]
    if "text_norm" not in aux:
        raise ValueError(
            "The model's output has neither text_raw nor text_norm in aux; use a "
            "DualEncoder, or target='teacher'."
        )
    return output.text_features * aux["text_norm"]


def join_batches(
    new: ImageTextBatch, old: ImageTextBatch, pad_id: int
) -> ImageTextBatch:
    """Put the samples of two batches after each other, marking the second's.

    :param new: a batch of B samples.
    :param old: another one with the same entries.
    :param pad_id: fills the captions of the batch with the shorter ones.
    :return: one batch with ``from_memory``, int64: 0 for the first, 1 for the second.
        Prompts of classes, which belong to no sample, stay those of the first.
    :raises ValueError: if the batches hold different entries.
    """
    prompts = new["text"] if isinstance(new, PromptBatch) else None
    if prompts is not None:
        new = type(new)((k, v) for k, v in new.items() if k != "text")
        old = type(old)((k, v) for k, v in old.items() if k not in ("text", "owner"))
    if set(new) != set(old):
        raise ValueError(
            f"Old items have {sorted(old)}, new ones {sorted(new)}; give the data of "
            "all experiences the same facts."
        )
    joined = type(new)()
    for key, value in new.items():
        other = old[key].to(value.dtype)
        if key == "text":
            width = max(value.shape[1], other.shape[1])
            value, other = (
                functional.pad(part, (0, width - part.shape[1]), value=pad_id)
                for part in (value, other)
            )
        elif key == "owner":
            other = other + len(new)
        joined[key] = torch.cat([value, other])
    sizes = torch.tensor([len(new), len(old)], device=joined["image"].device)
    marks = torch.arange(2, device=sizes.device)
    joined[FROM_MEMORY] = torch.repeat_interleave(marks, sizes)
    if prompts is not None:
        joined["text"] = prompts
    return joined
