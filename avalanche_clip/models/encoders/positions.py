"""Loaded weights for other inputs: resized positions, and towers of other models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.models.encoders import architectures
from avalanche_clip.models.encoders.agreement import check_same_architecture
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.folder import DRAWING, table_of
from avalanche_clip.models.encoders.towers import plain_name
from avalanche_clip.models.encoders.weight_layouts import load_into
from avalanche_clip.models.images.resizing import as_pair
from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer
from avalanche_clip.models.text.token_table import attach_token_embedding

KEPT = 20
"""Positions at the beginning of texts that a longer context leaves as they are."""
_IMAGE = (
    *("visual.positional_embedding", "visual.attnpool.positional_embedding"),
    *("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight"),
)
_TEXT = (
    *("positional_embedding", "text.positional_embedding"),
    "text_model.embeddings.position_embedding.weight",
)


def resize_dual_encoder(
    model: DualEncoder,
    *,
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
) -> DualEncoder:
    """Return a model with the same weights for larger pictures or longer texts.

    - **Image positions** lie on a grid, which is resized bicubic with antialiasing (as
      open_clip does); those of the class token stay. Preprocessing follows.
    - **Text positions**: the first 20 stay, so that captions of up to 20 tokens keep
      their features; the others are stretched linearly, and continued at the end
      (Long-CLIP: 77 become 248). For a shorter context they are cut.

    :param model: without adapters; left as it is.
    :param image_size: pixels, of a square or (height, width).
    :param context_length: tokens, at least 2.
    :return: a new model, also with a grown token table; trained and frozen as the old.
    :raises ValueError: if nothing is asked for, adapters are attached, or the towers
        have no such positions: texts that are not read at their end token (SigLIP),
        text towers of transformers in open_clip, window attention.

    Source: Zhang et al., ECCV 2024 (Long-CLIP, arXiv 2403.15378), section 3.2; the
    resizing of images is that of open_clip's ``resize_pos_embed``.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit", "icons")
    >>> twin = resize_dual_encoder(model, image_size=64, context_length=40)
    >>> twin.image_size, twin.context_length
    (64, 40)
    """
    if image_size is None and context_length is None:
        raise ValueError("Nothing to resize: give image_size, context_length or both.")
    table, key = table_of(model.clip)
    if table is not None:
        table.settle()
    model.check_plain("resize_dual_encoder", grown=key)
    config = _resized(model, image_size, context_length)
    clip = architectures.build_clip(config)
    state = {plain_name(k): v.float() for k, v in model.clip.state_dict().items()}
    _fit(state, clip, model, config)
    twin = DualEncoder(
        clip,
        config,
        pretrained=model.pretrained,
        precision=model.precision,
        cache_dir=model._cache_dir,
        preprocessing_source=model.preprocessing_source,
    )
    own = model.own_tokenizer
    if own is not None and not isinstance(own, HFCaptionTokenizer):
        twin.tokenizer = copy.deepcopy(own)
        twin.tokenizer.context_length = twin.context_length
    if table is not None:
        drawing = {name: getattr(table, name) for name in DRAWING}
        grown = attach_token_embedding(twin, tokenizer=twin.tokenizer, **drawing)
        grown.load_growth_state({**table.growth_state(), "tokenizer": None})
    load_into(clip, state, "the model")
    for new, old in zip(twin.parameters(), model.parameters(), strict=True):
        new.data = new.data.to(old.device, old.dtype)
        new.requires_grad_(old.requires_grad)
    twin._still = set(model._still)
    twin.reset_scale_bound()
    return twin.to(model.logit_scale.device).train(model.training)


def _resized(model: DualEncoder, image_size: Any, length: Any) -> dict[str, Any]:
    """Return a configuration with other sizes."""
    config = model.config
    is_hf = config["library"] == "transformers"
    inner = config["hf_config" if is_hf else "model_cfg"]
    vision, text = (
        inner[f"{part}_{'config' if is_hf else 'cfg'}"] for part in ("vision", "text")
    )
    if image_size is not None:
        sides = [as_size(side, "image_size") for side in as_pair(image_size)]
        size = sides[0] if sides[0] == sides[1] else sides
        if is_hf and sides[0] != sides[1]:
            raise ValueError(
                f"image_size={image_size}: transformers has no oblong inputs."
            )
        pixels = config["preprocess_cfg"]
        if pixels.get("resize_to") is not None:
            share = min(sides) / min(as_pair(model.image_size))
            pixels["resize_to"] = round(pixels["resize_to"] * share)
        vision["image_size"] = pixels["size"] = size
    if length is not None:
        length = as_size(length, "context_length", least=2)
        if not model.is_causal_text or text.get("hf_model_name"):
            raise ValueError(
                f"context_length={length}: only towers that read texts at their end"
                " token can have longer ones; leave it out."
            )
        text["max_position_embeddings" if is_hf else "context_length"] = length
        spec = config.get("tokenizer")
        if spec and spec["type"] == "hf":
            spec["kwargs"] = {**(spec.get("kwargs") or {}), "model_max_length": length}
    return config


def _fit(state: dict[str, Tensor], clip: Any, model: DualEncoder, config: Any) -> None:
    """Resize the positions in a state, in place."""
    own = clip.state_dict()
    old, new = (as_pair(size) for size in (model.image_size, _size_of(config)))
    for name in _IMAGE:
        if name in own and own[name].shape != state[name].shape:
            step = _step(clip, config)
            grids = [tuple(side // step for side in size) for size in (old, new)]
            state[name] = resize_grid(state[name], *grids)
    for name in _TEXT:
        if name in own and own[name].shape != state[name].shape:
            state[name] = stretch(state[name], len(own[name]))


def _size_of(config: dict[str, Any]) -> Any:
    return config["preprocess_cfg"]["size"]


def _step(clip: Any, config: dict[str, Any]) -> int:
    """Return the pixels between two neighbours on the grid."""
    if config["library"] == "transformers":
        return int(clip.config.vision_config.patch_size)
    visual = clip.visual
    if hasattr(visual, "trunk"):
        return as_pair(visual.trunk.patch_embed.patch_size)[0]
    return as_pair(visual.patch_size)[0] if hasattr(visual, "patch_size") else 32


def resize_grid(table: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Resize a grid of positions, bicubic with antialiasing.

    :param table: ``([1,] tokens + rows * columns, D)``; tokens in front stay.
    :param old: rows and columns.
    :param new: rows and columns of the result.
    """
    flat = table.reshape(-1, table.shape[-1])
    first, grid = flat.tensor_split([len(flat) - old[0] * old[1]])
    grid = grid.T.reshape(1, -1, *old)
    grid = interpolate(
        grid, size=new, mode="bicubic", antialias=True, align_corners=False
    )
    found = torch.cat([first, grid[0].flatten(1).T])
    return found.reshape(*table.shape[:-2], *found.shape)


def stretch(table: Tensor, length: int, kept: int = KEPT) -> Tensor:
    """Stretch positions of texts linearly, or cut them.

    :param table: ``(L, D)``.
    :param length: of the result.
    :param kept: first positions that stay.
    :raises ValueError: if there are too few positions to stretch.

    >>> stretch(torch.tensor([[0.0], [1.0], [2.0]]), 5, kept=1).flatten()
    tensor([0.0000, 1.0000, 1.5000, 2.0000, 2.5000])
    """
    if length <= len(table):
        return table[:length].clone()
    if len(table) < kept + 2:
        raise ValueError(
            f"The text tower has {len(table)} positions, of which {kept} stay; a longer"
            f" context needs at least {kept + 2}."
        )
    places = torch.arange(length - kept, dtype=torch.float64, device=table.device)
    places = kept + places * (len(table) - kept) / (length - kept)
    low = places.floor().long().clamp(max=len(table) - 2)
    share = (places - low)[:, None].to(table.dtype)
    rest = table[low] + share * (table[low + 1] - table[low])
    return torch.cat([table[:kept], rest])


def load_tower(model: DualEncoder, tower: str, source: DualEncoder) -> DualEncoder:
    """Copy one tower of another model, with its preprocessing or tokenizer.

    The other tower and ``logit_scale`` stay: a pretrained image tower beside an
    untrained text tower, or towers of two models.

    :param model: changed in place.
    :param tower: ``"image"`` (with the preprocessing) or ``"text"`` (with the
        tokenizer).
    :param source: model of the same library whose tower has the same configuration
        and the same width of features.
    :return: the model.
    :raises ValueError: for another tower, naming what differs, and with adapters; the
        model is then unchanged.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> icons = create_dual_encoder("tiny-emoji-vit", "icons")
    >>> load_tower(model, "image", icons) is model
    True
    """
    require_choice("tower", tower, ("image", "text"))
    for one in (model, source):
        one.check_plain("load_tower", grown=None)
    other = {"image": "text", "text": "vision"}[tower]
    mine, theirs = model.config, source.config
    for config in (mine, theirs):
        inner = config.get("hf_config") or config.get("model_cfg") or {}
        inner |= {k: {} for k in inner if k.startswith(other)}
        if tower == "image":
            inner.pop("multimodal_cfg", None)
    check_same_architecture(mine, theirs, f"the {tower} tower of the source")
    found = {plain_name(k): v for k, v in source.clip.state_dict().items()}
    found = {k.removeprefix("text."): v for k, v in found.items()}
    for name, tensor in model.clip.state_dict().items():
        if model.tower_of(f"clip.{name}") == tower:
            tensor.copy_(found[plain_name(name).removeprefix("text.")])
    key = "preprocess_cfg" if tower == "image" else "tokenizer"
    model._config[key] = source.config[key]
    if tower == "image":
        model.preprocessing_source = source.preprocessing_source
    else:
        model.own_tokenizer = copy.deepcopy(source.own_tokenizer)
    return model
