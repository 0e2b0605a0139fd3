"""Bind a benchmark to a model: transforms, tokenizer and caption choice."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset, TransformGroups

from avalanche_clip.benchmarks.items.batch import FieldCollate
from avalanche_clip.benchmarks.items.flat import has_no_images, without_groups
from avalanche_clip.benchmarks.items.items import attribute_array, item_fields, repeated
from avalanche_clip.benchmarks.items.marks import MarkedPictures
from avalanche_clip.benchmarks.items.scenario import (
    PartStream,
    clone_experience,
    make_scenario,
    whole_data,
)
from avalanche_clip.benchmarks.items.streamed import StreamedItems
from avalanche_clip.common.checks import as_finite, require_type


class RandomCaption:
    """Pick one caption of an image at random (the training side).

    The choice uses torch's generator, which the training loaders seed per
    sample, so it does not depend on the number of workers.

    :param name_probability: probability of the first caption, which by
        convention is the main one; None draws all captions equally often.
    :raises ValueError: if the probability is outside ``[0, 1]``.
    """

    def __init__(self, name_probability: float | None = None):
        if name_probability is not None:
            as_finite(name_probability, "name_probability", low=0, high=1)
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
    given = {"train": train_transform, "eval": eval_transform}
    used = {
        name: model.transform(name == "train") if transform is None else transform
        for name, transform in given.items()
    }
    text = RandomCaption() if train_text_transform is None else train_text_transform
    groups = TransformGroups(
        {
            "train": (used["train"], text),
            "eval": (MarkedPictures(used["eval"]), None),  # all captions
        }
    )
    pixels = {name: describe(used[name]) for name in used if given[name] is None}
    streams: dict[str, Any] = {}
    for name, stream in benchmark.streams.items():

        def change(dataset: Any, training: bool = is_training_stream(name)) -> Any:
            found = prepare_dataset(dataset, model.tokenizer, groups, pixels)
            return found if training else found.eval()

        if isinstance(stream, PartStream):
            streams[name] = stream.renewed(name, change)
        else:
            streams[name] = [clone_experience(e, change(e.dataset)) for e in stream]
    _check_sample_ids(streams)
    transforms = {
        "train": [describe(used["train"]), describe(text)],
        "eval": [describe(used["eval"])],
    }
    return make_scenario(streams, benchmark, transforms=transforms)


def describe(transform: Any) -> str:
    """Text that says what a transform does, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def is_training_stream(name: str) -> bool:
    """Whether a stream of that name is there to be trained on."""
    # Avalanche's split_online_stream names its stream "train_online".
    return name == "train" or name.startswith("train_")


def _check_sample_ids(streams: Mapping[str, Iterable[Any]]) -> None:
    ids = {
        name: [
            attribute_array(d, "sample_id")
            for d in whole_data(stream)
            if not isinstance(d, StreamedItems)
        ]
        for name, stream in streams.items()
    }
    none = np.empty(0, dtype=np.int64)
    for name in filter(is_training_stream, ids):
        twice = repeated(*ids[name])
        if twice.size:
            where = [i for i, column in enumerate(ids[name]) if twice[0] in column]
            raise ValueError(
                f"{len(twice)} sample_ids occur more than once in stream {name!r} "
                f"(for example {twice[0]}, in experience(s) {where}); a sample is "
                "known by its id in replay, caches and resuming. Give ids that are "
                "unique in the whole benchmark with "
                "make_image_text_dataset(sample_ids=...)."
            )
        train = np.sort(np.concatenate([none, *ids[name]]))
        for other in ids:
            if is_training_stream(other):
                continue
            theirs = np.concatenate([none, *ids[other]])
            first, end = (np.searchsorted(train, theirs, s) for s in ("left", "right"))
            shared = np.unique(theirs[first < end])
            if not shared.size:
                continue
            warnings.warn(
                f"{len(shared)} sample_ids of stream {other!r} (for example "
                f"{shared[0]}) also occur in {name!r}. If these are the same "
                "samples, take them out of one; if not, give sample_ids that are "
                "unique in the whole benchmark to make_image_text_dataset.",
                stacklevel=3,
            )


def prepare_dataset(
    dataset: AvalancheDataset,
    tokenizer: Any,
    groups: TransformGroups,
    pixels: Mapping[str, str] | None = None,
) -> AvalancheDataset:
    """Return an image-text data set with transforms and a tokenizer.

    Transform groups that it had are replaced; frozen transforms stay. Data whose
    images were left out (:func:`without_images`) get the text transforms only.

    :param pixels: see :class:`FieldCollate`.
    :raises ValueError: if the data set does not collate by
        :class:`FieldCollate`.
    """
    collate = dataset.collate_fn
    what, made = "The data set's collate", "data made by make_image_text_dataset"
    require_type(collate, FieldCollate, what, made, error=ValueError)
    if isinstance(dataset, StreamedItems):
        return dataset.prepared(tokenizer, groups, pixels)
    if has_no_images(dataset):
        pixels = None
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
        collate_fn=type(collate)(item_fields(dataset), tokenizer, pixels),
    ).train()


def is_prepared(dataset: AvalancheDataset) -> bool:
    """Tell whether a data set has been through :func:`prepare_benchmark`."""
    collate = dataset.collate_fn
    return isinstance(collate, FieldCollate) and collate.tokenizer is not None


def require_prepared(
    dataset: AvalancheDataset, model: Any = None, *, captions: bool = True
) -> None:
    """Raise ValueError unless a data set is prepared for a model.

    :param model: that is trained or evaluated on the data; another object that
        writes the same token ids and the same pixels will do. Transforms that were
        given to :func:`prepare_benchmark` are the user's own and not compared.
    :param captions: whether the token ids of the data are used, and so compared.
    """
    if not is_prepared(dataset):
        raise ValueError(
            "The data are not bound to a model: no tokenizer is set. Call benchmark = "
            "prepare_benchmark(benchmark, model) and train on that benchmark."
        )
    collate: Any = dataset.collate_fn
    theirs = getattr(model, "tokenizer", None) if captions else None
    fault = tokenizer_fault(collate.tokenizer, theirs)
    streamed = isinstance(dataset, StreamedItems)
    name = (
        dataset.group
        if streamed
        else dataset._flat_data._transform_groups.current_group
    )
    known = collate.pixels.get(name)
    if not fault and known and callable(getattr(model, "transform", None)):
        found = describe(model.transform(name == "train"))
        if found != known:
            fault = f"its images pass {known}, those of this model {found}"
    if fault:
        raise ValueError(
            f"The data are prepared for another model: {fault}. Call benchmark = "
            "prepare_benchmark(benchmark, model) with the model that is used."
        )


_PROBES = (
    "a photo of a dog.",
    "The quick brown fox jumps over the lazy dog",
    "0123456789 !#$%&()*+,-./:;<=>?@[]^_`{|}~",
    "Größe, naïve façade; ça où? Ŵ ł ø",
    "быстрая лиса",
    "ἀλεπού γρήγορη",
    "שועל מהיר",
    "ثعلب سريع",
    "敏捷的棕色狐狸",
    "きつねはすばやい",
    "빠른 갈색 여우",
    "तेज भूरी लोमड़ी",
    "\U0001f98a grinning face with big eyes",
)


def tokenizer_fault(ours: Any, theirs: Any) -> str:
    """Say where two tokenizers differ; an empty string if they do not.

    :param ours: of the data.
    :param theirs: of the model; None for a model that has none.
    """
    if theirs is None or ours is theirs:
        return ""
    for name in ("vocab_size", "context_length", "pad_id", "sot_id", "eot_id"):
        have, want = getattr(ours, name, None), getattr(theirs, name, None)
        if have != want:
            return f"its tokenizer has {name}={have}, that of this model {want}"
    for text in _PROBES:
        have, want = (_ids(tokenizer, text) for tokenizer in (ours, theirs))
        if have != want:
            return (
                f"its tokenizer writes {text!r} as {have[:12]}, that of this model as "
                f"{want[:12]}"
            )
    return ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    encode = getattr(tokenizer, "encode", None)
    if callable(encode):
        return [int(number) for number in encode(text)]
    return [int(number) for number in tokenizer([text])[0]]
