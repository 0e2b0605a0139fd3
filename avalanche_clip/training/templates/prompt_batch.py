"""A batch of images beside the prompts of a label space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from avalanche_clip.benchmarks.items.batch import ImageTextBatch
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.models.peft.attached import attachment


class PromptBatch(ImageTextBatch):
    """Images with the prompts of a label space, which belong to no image.

    ``text`` holds one prompt per class, ``(C, L)``; there is no ``owner``.
    """

    prompts: int | None = None
    """How many of the texts count; the others fill up a part without any."""

    def split(self, chunks: int) -> list[ImageTextBatch]:
        """Cut images and prompts into consecutive, nearly equal parts.

        :param chunks: number of parts; at most one per image. A part without a
            prompt of its own gets the first one, which does not count.
        """
        images = ImageTextBatch((k, v) for k, v in self.items() if k != "text")
        text = self["text"]
        found = images.split(chunks)
        parts: list[ImageTextBatch] = []
        for number, images in enumerate(found):
            low = number * len(text) // len(found)
            high = (number + 1) * len(text) // len(found)
            part = PromptBatch(images)
            part["text"] = text[low:high] if high > low else text[:1]
            part.prompts = high - low
            parts.append(part)
        return parts


@contextmanager
def counted_texts(model: Any, batch: Any) -> Iterator[None]:
    """Keep texts that do not count out of the statistics of expert adapters.

    :param model: with ``model.moe_adapters``, or without.
    :param batch: to be encoded inside the context.
    """
    adapters = attachment(model, "moe_adapters")
    if adapters is None or getattr(batch, "prompts", None) != 0:
        yield
        return
    with adapters.paused("text"):
        yield


def without_filler(output: CLIPOutput, batch: Any) -> CLIPOutput:
    """Drop the texts of a part that do not count."""
    count = getattr(batch, "prompts", None)
    if count is None or count == len(output.text_features):
        return output
    aux = dict(output.aux or {})
    if "text_norm" in aux:
        aux["text_norm"] = aux["text_norm"][:count]
    return output._replace(text_features=output.text_features[:count], aux=aux or None)
