"""Add facts to image-text data sets, or take their pictures away.

Avalanche 0.6.0's ``update_data_attribute`` leaves a replaced attribute behind
as a field, puts new ones after the task label and knows nothing of collates;
these functions keep all three in order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute

from avalanche_clip.benchmarks.items.batch import FieldCollate
from avalanche_clip.benchmarks.items.flat import has_no_images, texts_only
from avalanche_clip.benchmarks.items.items import item_fields
from avalanche_clip.benchmarks.items.prepare import is_prepared
from avalanche_clip.benchmarks.items.scenario import TASK_LABELS
from avalanche_clip.benchmarks.items.times import timestamp_column
from avalanche_clip.common.checks import require_length, require_type


def with_facts(
    dataset: AvalancheDataset, facts: Mapping[str, Any], *, in_item: bool = True
) -> AvalancheDataset:
    """Return a copy of a data set with further or replaced facts per sample.

    The given data set is unchanged; items, transforms, tokenizer and the other
    facts are shared. Facts that were there keep their place, new ones come
    before the task label.

    :param dataset: image-text data.
    :param facts: name -> column of ``len(dataset)`` numbers or numeric rows,
        anything with ``len()`` and ``[i]``; for ``timestamp`` anything that
        :func:`make_image_text_dataset` takes.
    :param in_item: whether these facts travel into the batch.
    :raises ValueError: if a column has another length, or a name is taken by
        something else.
    :raises TypeError: if the data set is no Avalanche data set.
    """
    made = "one made by make_image_text_dataset"
    require_type(dataset, AvalancheDataset, "dataset", made)
    changed = copy.copy(dataset)
    attributes = dict(dataset._data_attributes)
    tail = {n: attributes.pop(n) for n in (TASK_LABELS,) if n in attributes}
    for name, column in facts.items():
        require_length(column, len(dataset), f"values of fact {name!r}", "sample")
        if name == "timestamp":
            column = timestamp_column(column)
        if name in ("image", "text", "owner", "caption_key", TASK_LABELS) or (
            name not in attributes and hasattr(dataset, name)
        ):
            raise ValueError(
                f"A fact cannot be named {name!r}: data sets or batches use that name "
                "for something else. Choose another."
            )
        attributes[name] = DataAttribute(column, name, use_in_getitem=in_item)
    changed._data_attributes = type(dataset._data_attributes)({**attributes, **tail})
    for name in facts:
        # `targets` of task-aware data sets is a property of the attributes.
        if not isinstance(getattr(type(changed), name, None), property):
            setattr(changed, name, changed._data_attributes[name])
    collate = dataset.collate_fn
    if isinstance(collate, FieldCollate):
        changed.collate_fn = collate.with_fields(item_fields(changed))
    return changed


def without_images(dataset: AvalancheDataset) -> AvalancheDataset:
    """Return a copy of an unprepared data set whose pictures are left out.

    A batch of such data has an image tensor of shape ``(B, 0)``: for training
    from stored image features.

    :param dataset: image-text data, before :func:`prepare_benchmark`.
    :raises ValueError: if the data have transforms already, or were not made by
        :func:`make_image_text_dataset`.
    """
    if is_prepared(dataset):
        raise ValueError(
            "The data set is prepared for a model, so its image transforms expect "
            "pictures. Leave images out first, then call prepare_benchmark."
        )
    changed = texts_only(dataset)
    if not has_no_images(changed):
        raise ValueError(
            "Only data sets made by make_image_text_dataset can go without images."
        )
    return changed
