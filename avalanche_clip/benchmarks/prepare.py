"""Bind a benchmark to a model: transforms, tokenizer and caption choice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import (
    CLExperience,
    EagerCLStream,
    ExperienceAttribute,
)
from avalanche.benchmarks.utils import AvalancheDataset, TransformGroups

from avalanche_clip.benchmarks.data import FieldCollate


class RandomCaption:
    """Pick one caption of an image at random, and all of them in evaluation.

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


class AllCaptions:
    """Keep every caption of an image (the evaluation side)."""

    def __call__(self, captions: Any) -> Any:
        return captions


class PreparedBenchmark(CLScenario):
    """A benchmark whose data sets carry transforms and a tokenizer."""


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
    :return: the prepared benchmark; the given one is unchanged.
    :raises ValueError: if a data set was not made for image-text pairs.
    """
    train_image = train_transform or model.transform(True)
    eval_image = eval_transform or model.transform(False)
    text = train_text_transform or RandomCaption()
    groups = TransformGroups(
        {"train": (train_image, text), "eval": (eval_image, AllCaptions())}
    )
    streams = []
    for name, stream in benchmark.streams.items():
        experiences = []
        for experience in stream:
            dataset = prepare_dataset(experience.dataset, model.tokenizer, groups)
            if name != "train":
                dataset = dataset.eval()
            experiences.append(clone_experience(experience, dataset))
        streams.append(EagerCLStream(name, experiences))
    prepared = PreparedBenchmark(streams)
    for stream in prepared.streams.values():
        stream.benchmark = prepared
    copy_scenario_facts(benchmark, prepared)
    return prepared


def prepare_dataset(
    dataset: AvalancheDataset, tokenizer: Any, groups: TransformGroups
) -> AvalancheDataset:
    """Return an image-text data set with transforms and a tokenizer.

    :raises ValueError: if the data set does not collate by
        :class:`FieldCollate`.
    """
    collate = dataset.collate_fn
    if not isinstance(collate, FieldCollate):
        raise ValueError(
            f"The data set collates by {type(collate).__name__}; image-text data sets "
            "are made by make_image_text_dataset."
        )
    bare = dataset.remove_current_transform_group() if _has_groups(dataset) else dataset
    return type(dataset)(
        [bare],
        data_attributes=None,
        transform_groups=groups,
        collate_fn=collate.with_tokenizer(tokenizer),
    ).train()


def _has_groups(dataset: AvalancheDataset) -> bool:
    groups = dataset._flat_data._transform_groups
    return groups is not None and bool(groups.transform_groups)


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
    for name in ("time_labels", "class_prompts", "languages", "description"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


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


__all__ = [
    "AllCaptions",
    "PreparedBenchmark",
    "RandomCaption",
    "attach_scenario",
    "clone_experience",
    "copy_scenario_facts",
    "is_prepared",
    "prepare_benchmark",
    "prepare_dataset",
]
