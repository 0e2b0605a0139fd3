"""Bind a benchmark to a model: transforms, tokenizer and caption choice."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import (
    CLExperience,
    EagerCLStream,
    ExperienceAttribute,
)
from avalanche.benchmarks.utils import AvalancheDataset, TransformGroups
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups

from avalanche_clip.benchmarks.batch import FieldCollate
from avalanche_clip.benchmarks.data import attribute_array, item_fields
from avalanche_clip.benchmarks.facts import has_no_images
from avalanche_clip.benchmarks.marks import MarkedPictures


class RandomCaption:
    """Pick one caption of an image at random (the training side).

    The choice uses torch's generator, which the training loaders seed per
    sample, so it does not depend on the number of workers.

    :param name_probability: probability of the first caption, which by
        convention is the main one; None draws all captions equally often.
    :raises ValueError: if the probability is outside ``[0, 1]``.
    """

    def __init__(self, name_probability: float | None = None):
        if name_probability is not None and not 0.0 <= name_probability <= 1.0:
            raise ValueError(
                f"name_probability={name_probability} must lie in [0, 1] or be None."
            )
        self.name_probability = name_probability

    def __call__(self, captions: Any) -> Any:
        if not isinstance(captions, (list, tuple)):
            return captions
        if len(captions) == 1:
            return captions[0]
        if self.name_probability is None:
            return captions[int(torch.randint(len(captions), ()))]
        if float(torch.rand(())) < self.name_probability:
            return captions[0]
        return captions[1 + int(torch.randint(len(captions) - 1, ()))]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name_probability={self.name_probability})"


class AllCaptions:
    """Keep every caption of an image (the evaluation side)."""

    def __call__(self, captions: Any) -> Any:
        return captions


def prepare_benchmark(
    benchmark: CLScenario,
    model: Any,
    *,
    train_transform: Callable[[Any], torch.Tensor] | None = None,
    eval_transform: Callable[[Any], torch.Tensor] | None = None,
    train_text_transform: Callable[[Any], Any] | None = None,
) -> CLScenario:
    """Give every data set of a benchmark the transforms of a model.

    Apply it last, after splitting and decorating: it returns a benchmark with
    the same streams and experiences whose data sets have the transform groups
    ``train`` and ``eval`` and a collate that tokenises with
    ``model.tokenizer``. The tokenizer is held by reference, so that a
    vocabulary grown in training is seen at once.

    :param benchmark: any benchmark of data sets made by
        :func:`make_image_text_dataset`.
    :param model: a :class:`~avalanche_clip.models.DualEncoder`, or any object
        with ``transform(train)`` and ``tokenizer``.
    :param train_transform: replaces ``model.transform(True)``.
    :param eval_transform: replaces ``model.transform(False)``.
    :param train_text_transform: applied to the text of training items;
        default :class:`RandomCaption`, one caption per image drawn at random.
    :return: the prepared benchmark; the given one is unchanged. Preparing
        again replaces transforms and tokenizer, it adds nothing to them.
    :raises ValueError: if a data set was not made for image-text pairs, or a
        ``sample_id`` occurs in two training experiences.

    Samples that other streams share with ``train`` are warned about: they are
    test samples trained on, or ids that were left at their default. Streams
    other than ``train`` may share samples (a gallery of all test sets).
    """
    train_image = model.transform(True) if train_transform is None else train_transform
    eval_image = model.transform(False) if eval_transform is None else eval_transform
    text = RandomCaption() if train_text_transform is None else train_text_transform
    groups = TransformGroups(
        {
            "train": (train_image, text),
            "eval": (MarkedPictures(eval_image), AllCaptions()),
        }
    )
    streams = []
    for name, stream in benchmark.streams.items():
        experiences = []
        for experience in stream:
            dataset = prepare_dataset(experience.dataset, model.tokenizer, groups)
            if not _is_training(name):
                dataset = dataset.eval()
            experiences.append(clone_experience(experience, dataset))
        streams.append(EagerCLStream(name, experiences))
    _check_sample_ids(streams)
    prepared = attach_scenario(streams)
    copy_scenario_facts(benchmark, prepared)
    prepared.transforms = {
        "train": [_describe(train_image), _describe(text)],
        "eval": [_describe(eval_image)],
    }
    return prepared


def _describe(transform: Any) -> str:
    """Text that says what a transform does, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def _is_training(name: str) -> bool:
    # Avalanche's split_online_stream names its stream "train_online".
    return name == "train" or name.startswith("train_")


def _check_sample_ids(streams: Sequence[EagerCLStream]) -> None:
    # Sorted: many times faster than numpy 2.4's `unique` on a million distinct ids.
    ids = {
        stream.name: np.sort(_gather([e.dataset for e in stream])) for stream in streams
    }
    training = [stream for stream in streams if _is_training(stream.name)]
    for stream in training:
        if _repeated(ids[stream.name]).size:
            raise ValueError(_repeat_message(stream, _repeated(ids[stream.name])))
        for other in streams:
            if _is_training(other.name):
                continue
            shared = _repeated(
                np.sort(np.concatenate([ids[stream.name], _distinct(ids[other.name])]))
            )
            if not shared.size:
                continue
            warnings.warn(
                f"{len(shared)} sample_ids of stream {other.name!r} (for example "
                f"{shared[0]}) also occur in {stream.name!r}. If these are the same "
                "samples, take them out of one; if not, give sample_ids that are "
                "unique in the whole benchmark to make_image_text_dataset.",
                stacklevel=3,
            )


def _gather(datasets: Sequence[AvalancheDataset]) -> np.ndarray:
    parts = [attribute_array(dataset, "sample_id") for dataset in datasets]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _repeated(ordered: np.ndarray) -> np.ndarray:
    return _distinct(ordered[1:][ordered[1:] == ordered[:-1]])


def _distinct(ordered: np.ndarray) -> np.ndarray:
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _repeat_message(stream: EagerCLStream, repeated: np.ndarray) -> str:
    where = [
        index
        for index, experience in enumerate(stream)
        if (attribute_array(experience.dataset, "sample_id") == repeated[0]).any()
    ]
    return (
        f"{len(repeated)} sample_ids occur more than once in stream {stream.name!r} "
        f"(for example {repeated[0]}, in experience(s) {where}); a sample is known by "
        "its id in replay, caches and resuming. Give ids that are unique in the whole "
        "benchmark with make_image_text_dataset(sample_ids=...)."
    )


def prepare_dataset(
    dataset: AvalancheDataset, tokenizer: Any, groups: TransformGroups
) -> AvalancheDataset:
    """Return an image-text data set with transforms and a tokenizer.

    Transform groups that it had are replaced; frozen transforms stay. Data whose
    images were left out (:func:`without_images`) get the text transforms only.

    :raises ValueError: if the data set does not collate by
        :class:`FieldCollate`.
    """
    collate = dataset.collate_fn
    if not isinstance(collate, FieldCollate):
        raise ValueError(
            f"The data set collates by {type(collate).__name__}; image-text data sets "
            "are made by make_image_text_dataset."
        )
    if has_no_images(dataset):
        groups = TransformGroups(
            {name: (None, *groups[name].transforms[1:]) for name in ("train", "eval")}
        )
    bare = copy.copy(dataset)
    bare._flat_data = without_groups(dataset._flat_data)
    return type(dataset)(
        [bare],
        data_attributes=None,
        transform_groups=groups,
        # Decorators may have added attributes, so the fields are read anew.
        collate_fn=type(collate)(item_fields(dataset), tokenizer),
    ).train()


def without_groups(flat: Any) -> Any:
    """Rebuild a tree of data without its transform groups.

    Avalanche 0.6.0's ``remove_current_transform_group`` drops only the group
    in use: a data set prepared twice would transform twice in the other one.
    Trees have groups at any level, since subsets wrap what they are taken from.
    """
    bare = copy.copy(flat)
    bare._transform_groups = EmptyTransformGroups()
    bare._transform_groups.current_group = "train"
    bare._datasets = [
        without_groups(part) if isinstance(part, _FlatDataWithTransform) else part
        for part in flat._datasets
    ]
    return bare


def clone_experience(
    experience: CLExperience, dataset: AvalancheDataset
) -> DatasetExperience:
    """Copy an experience of any class, with its fields, around other data.

    A plain ``copy.copy`` would share Avalanche's masked attribute cells, so
    that renumbering the copy would renumber the original.
    """
    clone = copy.copy(experience)
    for name, value in vars(experience).items():
        if isinstance(value, ExperienceAttribute):
            vars(clone)[name] = copy.copy(value)
    clone._origin_stream = None
    clone._dataset = dataset
    return clone


def copy_scenario_facts(source: CLScenario, target: CLScenario) -> None:
    """Carry over what generators attach to a scenario (labels, prompts)."""
    for name, value in vars(source).items():
        if not name.startswith("_") and not name.endswith("_stream"):
            setattr(target, name, value)
    if not hasattr(target, "time_labels"):
        # Avalanche's decorators make a new scenario, but keep the experiences.
        labels = [
            getattr(experience, "time_label", None)
            for experience in target.streams.get("train", ())
        ]
        if labels and None not in labels:
            target.time_labels = labels


def is_prepared(dataset: AvalancheDataset) -> bool:
    """Tell whether a data set has been through :func:`prepare_benchmark`."""
    collate = dataset.collate_fn
    return isinstance(collate, FieldCollate) and collate.tokenizer is not None


def attach_scenario(streams: Sequence[EagerCLStream]) -> CLScenario:
    """Make a scenario whose streams know it (Avalanche 0.6.0 leaves None)."""
    scenario = CLScenario(list(streams))
    for stream in scenario.streams.values():
        stream.benchmark = scenario
    return scenario


def require_prepared(dataset: AvalancheDataset) -> None:
    """Raise ValueError unless a data set is prepared for a model."""
    if not is_prepared(dataset):
        raise ValueError(
            "The data are not bound to a model: no tokenizer is set. Call benchmark = "
            "prepare_benchmark(benchmark, model) and train on that benchmark."
        )


__all__ = [
    "AllCaptions",
    "RandomCaption",
    "attach_scenario",
    "clone_experience",
    "copy_scenario_facts",
    "is_prepared",
    "require_prepared",
    "prepare_benchmark",
    "prepare_dataset",
]
