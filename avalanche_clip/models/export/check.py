"""Load an exported folder by the other library's own call and compare."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.models.encoders.architectures import vocab_size_of
from avalanche_clip.models.encoders.folder import table_of
from avalanche_clip.models.encoders.output import unit_features
from avalanche_clip.models.images.resizing import as_pair
from avalanche_clip.models.text.growing import GrowingTokenizer

TOLERANCE = 1e-5
_TEXTS = ["a photo of a cat.", "Red  house, 2 dogs!", "it's here", "x1 " * 300, ""]
_NEW = 16  # tokens of a grown vocabulary that are tried
# sides of pictures, as shares of those of the input: height and width
_SHAPES = ((1.0, 1.0), (1.5, 1.0), (2.0, 3.0))


class _Loaded(NamedTuple):
    """A model of another library.

    :param image: preprocessed images to features.
    :param text: token ids to features.
    :param ids: captions to token ids of full length.
    :param pixels: a picture to ``(3, H, W)``.
    :param clean: what happens to captions before they are cut.
    """

    module: torch.nn.Module
    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    ids: Callable[[list[str]], Tensor]
    pixels: Callable[[Image.Image], Tensor]
    clean: Callable[[str], str]


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers load and write without bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_loaded(model: Any, form: str, folder: Path) -> None:
    """Make sure that a folder gives what the model gives.

    :param model: a dual encoder in evaluation mode.
    :param form: format of the folder.
    :param folder: what was written.
    :raises ValueError: naming what differs.
    """
    try:
        found = _LOADERS[form](folder, model.context_length)
    except (
        Exception
    ) as error:  # of libraries that cannot read what is no model of theirs
        raise ValueError(f"{form} does not load it ({error})") from error
    device = model.logit_scale.device
    found.module.to(device).eval()
    draw = np.random.default_rng(0)
    _check_pixels(model, found, draw)
    _check_ids(model, found)
    noise = draw.standard_normal((2, 3, *as_pair(model.image_size)))
    images = torch.from_numpy(noise).float().to(device)
    _compare("image features", model.encode_image(images), found.image(images))
    texts = _rows(model, draw).to(device)
    _compare("text features", model.encode_text(texts), found.text(texts))


def _compare(what: str, ours: Tensor, theirs: Tensor) -> None:
    far = (unit_features(theirs.float())[0] - ours).abs().max()
    if not far <= TOLERANCE:
        raise ValueError(f"its {what} differ by {far:.1e}")


def rows_of(model: Any) -> int:
    """Return the number of rows of a model's token table, grown ones included."""
    table, _ = table_of(model.clip)
    return vocab_size_of(model.config) if table is None else table.num_embeddings


def _rows(model: Any, draw: np.random.Generator) -> Tensor:
    """Rows of any ids, the highest ones included, with an end token."""
    tokenizer, length = model.tokenizer, model.context_length
    count = min(tokenizer.vocab_size, rows_of(model))
    ids = draw.integers(0, count, (8, length))
    ids[0, 1:3] = count - 1
    ids[:, 0] = ids[:, 0] if tokenizer.sot_id is None else tokenizer.sot_id
    for row, end in enumerate(draw.integers(3, length, len(ids)) if length > 3 else []):
        ids[row, end:] = tokenizer.pad_id
        ids[row, end] = tokenizer.eot_id
    return torch.from_numpy(ids)


def _check_ids(model: Any, found: _Loaded) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)  # counts what it cuts
    tokenizer.truncate = True
    texts = [t for t in [*_TEXTS, *_grown(tokenizer)] if found.clean(t) == t]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = tokenizer(texts)
    theirs = found.ids(texts)
    for text, row, other in zip(texts, ours, theirs, strict=True):
        # what follows the end token is not read
        is_end = (row == tokenizer.eot_id).nonzero()
        stop = int(is_end[0]) + 1 if len(is_end) else len(row)
        if not torch.equal(row[:stop], other[:stop]):
            raise ValueError(
                f"its token ids of {text[:30]!r} are {other[:8].tolist()}, not"
                f" {row[:8].tolist()}"
            )


def _grown(tokenizer: Any) -> list[str]:
    """Texts of the tokens that a vocabulary has learnt last."""
    if not isinstance(tokenizer, GrowingTokenizer):
        return []
    from tokenizers.decoders import ByteLevel

    fresh = tokenizer.vocabulary.tokens[tokenizer.base_vocab_size :][-_NEW:]
    if tokenizer.vocabulary.kind == "unigram":
        return [token.replace("▁", " ").strip() for token in fresh]
    return [ByteLevel().decode([token.replace("</w>", "")]) for token in fresh]


def _check_pixels(model: Any, found: _Loaded, draw: np.random.Generator) -> None:
    transform = model.transform(False)
    height, width = transform.preprocessing.size
    for tall, wide in _SHAPES:
        shape = int(height * tall) // 2 * 2, int(width * wide) // 2 * 2, 3
        picture = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))
        given = transform.place(picture) if transform.preprocessing.trim else picture
        far = (found.pixels(given) - transform(picture)).abs().max()
        if not far <= TOLERANCE:
            raise ValueError(f"its pixels differ by {far:.1e}")


# ------------------------------------------------------------------------ loading
def _load_open_clip(folder: Path, length: int) -> _Loaded:
    import open_clip

    name = f"local-dir:{folder}"
    module, pixels = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    own = isinstance(tokenizer, open_clip.SimpleTokenizer)
    clean = str if own else tokenizer.clean_fn
    return _Loaded(
        module, module.encode_image, module.encode_text, tokenizer, pixels, clean
    )


def _load_transformers(folder: Path, length: int) -> _Loaded:
    from transformers import AutoModel, AutoProcessor

    module = AutoModel.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")

    def image(pixels: Tensor) -> Tensor:
        return module.get_image_features(pixel_values=pixels).pooler_output

    def text(ids: Tensor) -> Tensor:
        return module.get_text_features(input_ids=ids).pooler_output

    def ids(texts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": length}
        found = processor.tokenizer(texts, return_tensors="pt", **options)
        return found.input_ids

    def pixels(picture: Image.Image) -> Tensor:
        return processor.image_processor(picture, return_tensors="pt").pixel_values[0]

    return _Loaded(module, image, text, ids, pixels, str)


_LOADERS: dict[str, Callable[[Path, int], _Loaded]] = {
    "open_clip": _load_open_clip,
    "transformers": _load_transformers,
}
