"""Write a model so that open_clip or transformers loads it by its own call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.common.checks import require_choice, require_type
from avalanche_clip.common.files import replacing_folder, write_json, write_text
from avalanche_clip.common.randomness import evaluating, kept_rng
from avalanche_clip.models.encoders.architectures import build_clip
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.folder import table_of
from avalanche_clip.models.encoders.towers import TransformersTowers, plain_name
from avalanche_clip.models.export import layouts, tokenizers
from avalanche_clip.models.export.card import MARK, model_card
from avalanche_clip.models.export.check import check_loaded, quiet, rows_of
from avalanche_clip.models.images.transforms import Preprocessing
from avalanche_clip.models.peft.attached import attached
from avalanche_clip.models.peft.merge import merge_adapters
from avalanche_clip.models.text.settings import is_hub_id

FORMATS = ("open_clip", "transformers")
_CARD = "README.md"
_CLEANED = (
    "Captions are cleaned before they are cut (broken characters, HTML entities,"
    " blanks); ids are equal for captions that this leaves as they are."
)
_FILLED = (
    "Rows are filled with the end token instead of id 0; features are the same, since"
    " texts are read at their first end token."
)
_CROPPED = (
    "Of an odd number of pixels that are cut off, the other side may get one more, as"
    " CLIPImageProcessor rounds."
)
_FAST = (
    'Pixels are equal with backend="pil"; the faster default may differ by one grey'
    " level where pictures are resized."
)
_TRIMMED = (
    "The model was trained on drawings zoomed to what is drawn (trim), which no setting"
    " here expresses: give pictures that avalanche_clip's"
    " `model.transform(False).place(picture)` has zoomed."
)


@dataclass
class _Plan:
    """A model in the words of a library, before anything is written."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    preprocess: dict[str, Any]


def export_model(
    model: DualEncoder,
    folder: str | Path,
    format: str = "open_clip",
    *,
    data: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a model as another library's folder.

    ``open_clip.create_model_from_pretrained("local-dir:<folder>")`` and
    ``open_clip.get_tokenizer``, or ``CLIPModel.from_pretrained(<folder>)`` and
    ``AutoProcessor`` then give the same features (within 1e-5), token ids and pixels;
    the folder is loaded once to make sure. Low-rank updates are merged in a copy, a
    grown vocabulary goes with its tokenizer, and texts are read at their end token
    whatever ids there are above it. ``README.md`` says where the model comes from,
    and what the library does in another way (if anything): open_clip cleans captions
    of tokenizers that are not its own, and neither library zooms to drawings
    (``trim``, as the tiny presets do), of which a warning tells too.

    :param model: left as it is, random generators too.
    :param folder: new, empty, or an earlier export, which is replaced.
    :param format: ``"open_clip"``, for models of open_clip and transformers' CLIP; or
        ``"transformers"``, for transformers' models and open_clip's plain transformers.
    :param data: what the model was trained on, for the card.
    :param license: of the weights, for the card.
    :return: the folder.
    :raises TypeError: for what is no dual encoder.
    :raises ValueError: for unknown formats, and where the library cannot compute the
        same, with the reason and the formats that are possible: mixtures, bottlenecks
        and prompts, rows that are being trained, other architectures and
        preprocessing. No folder is left then.

    >>> import tempfile
    >>> from avalanche_clip import create_dual_encoder
    >>> cfg = create_dual_encoder("tiny-emoji-vit").config
    >>> cfg["preprocess_cfg"]["trim"] = False
    >>> with tempfile.TemporaryDirectory() as place:
    ...     path = export_model(create_dual_encoder(cfg), f"{place}/mine")
    ...     (path / "open_clip_config.json").is_file()
    True
    """
    require_choice("format", format, FORMATS)
    require_type(model, DualEncoder, "The model", "a DualEncoder (strategy.model)")
    folder = Path(folder).expanduser()
    _check_free(folder)
    with kept_rng(model.logit_scale.device), torch.no_grad(), quiet():
        plain = _plain(model)
        try:
            plan = _plan(plain, format)
            with evaluating(plain), replacing_folder(folder) as target:
                notes = _WRITERS[format](plain, plan, target)
                check_loaded(plain, format, target)
                card = model_card(plain, format, notes, data, license)
                write_text(target / _CARD, card)
        except ValueError as error:
            raise ValueError(
                f"format={format!r} cannot hold this model: {error}. Possible:"
                f" {_possible(plain, format)}."
            ) from error
    if _trimmed(plain):
        warnings.warn(f"{folder}: {_TRIMMED}", UserWarning, stacklevel=2)
    return folder


def _check_free(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    card = folder / _CARD
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    if folder.exists() and not ours:
        raise ValueError(
            f"{folder} exists and is no earlier export; give a new folder or remove it."
        )


def _plain(model: DualEncoder) -> DualEncoder:
    """Return the model without branches and 16-bit weights, a copy if it has some."""
    if attached(model) or model.precision != "fp32":
        model = copy.deepcopy(model)
        if attached(model):
            merge_adapters(model)
        model.precision = "fp32"
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    table, key = table_of(model.clip)
    if table is not None and table.active is not None:
        raise ValueError(
            f"{len(table.active)} rows of the token table are being trained; export the"
            " model between experiences."
        )
    model.check_plain("export_model", grown=key)
    return model


# ----------------------------------------------------------------------- planning
def _possible(model: DualEncoder, refused: str) -> str:
    """Name the other formats that can hold a model."""
    found = []
    for form in FORMATS:
        try:
            if form != refused and _plan(model, form):
                found.append(repr(form))
        except ValueError:
            continue
    return ", ".join(found) or "none of the formats"


def _plan(model: DualEncoder, form: str) -> _Plan:
    config = model.config
    state = {plain_name(k): v for k, v in model.clip.state_dict().items()}
    is_hf = config["library"] == "transformers"
    own = config["hf_config" if is_hf else "model_cfg"]
    (own["text_config" if is_hf else "text_cfg"])["vocab_size"] = rows_of(model)
    given = Preprocessing.from_dict(config["preprocess_cfg"])
    if given.exif_rotation:
        raise ValueError(f"{form} does not turn pictures (exif_rotation)")
    if form == "open_clip":
        _check_names(own)
        if is_hf:
            own, state = layouts.to_open_clip(own, state)
        _set_end(model, own["text_cfg"])
        return _Plan(own, state, _open_clip_pixels(given))
    if not is_hf:
        own, state = layouts.to_transformers(own, state)
    return _Plan(own, state, _transformers_pixels(given))


def _check_names(model_cfg: dict[str, Any]) -> None:
    """Refuse towers that are found by the name of a folder here."""
    for part, key in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        name = model_cfg.get(part, {}).get(key)
        plain = str(name).removeprefix("hf-hub:")
        if name and (Path(plain).exists() or not is_hub_id(plain)):
            raise ValueError(f"the folder {name!r} of its {key} would not go along")


def _set_end(model: DualEncoder, text_cfg: dict[str, Any]) -> None:
    """Let texts be read at the end token, where ids above it may be in use."""
    end = _end_of(model)
    pools = text_cfg.get("pool_type", "argmax")
    if not model.is_causal_text or pools not in ("argmax", "eos"):
        return
    if pools == "eos" or end < text_cfg["vocab_size"] - 1:
        text_cfg |= {"pool_type": "eos", "eos_id": end}


def _end_of(model: DualEncoder) -> int:
    """Return the id at which texts are read."""
    own, towers = model.tokenizer, model._towers
    if isinstance(towers, TransformersTowers):
        return towers.pooling_id(model.clip, own(["a photo"]), own.eot_id)
    return own.eot_id


def _open_clip_pixels(given: Preprocessing) -> dict[str, Any]:
    values = given.to_dict()
    square = given.size[0] == given.size[1]
    if given.resize_to not in (None, given.size[0] if square else None):
        raise ValueError(
            f"open_clip resizes to the size of the input, not to {given.resize_to}"
        )
    bicubic = given.interpolation == "bicubic"
    if not square and given.resize_mode == "shortest" and not bicubic:
        raise ValueError(f"open_clip resizes oblong inputs bicubic, not {given}")
    for key in ("trim", "resize_to", "size"):
        values.pop(key, None)
    return values


def _transformers_pixels(given: Preprocessing) -> dict[str, Any]:
    height, width = given.size
    whole = {"height": height, "width": width}
    if given.resize_mode == "squash":
        side = given.resize_to
        size = whole if side is None else {"height": side, "width": side}
    elif given.resize_mode == "shortest" and (height == width or given.resize_to):
        size = {"shortest_edge": given.resize_to or height}
    else:
        raise ValueError(
            f"its image processors have no resize_mode={given.resize_mode!r} to"
            f" {height} x {width}"
        )
    filters = {"bilinear": 2, "bicubic": 3}
    return {
        "size": size,
        "crop_size": whole,
        "do_center_crop": size != whole,
        "resample": filters[given.interpolation],
        "image_mean": list(given.mean),
        "image_std": list(given.std),
    }


# ------------------------------------------------------------------------ writing
def _write_open_clip(model: DualEncoder, plan: _Plan, folder: Path) -> list[str]:
    text_cfg = plan.config["text_cfg"]
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        text_cfg.pop(key, None)
    text_cfg |= tokenizers.for_open_clip(model.tokenizer, folder)
    write_safetensors(folder / "open_clip_model.safetensors", plan.state, {})
    facts = {"model_cfg": plan.config, "preprocess_cfg": plan.preprocess}
    write_json(folder / "open_clip_config.json", facts)
    notes = []
    if text_cfg.get("hf_tokenizer_name") and not tokenizers.is_cleaned(model.tokenizer):
        notes.append(_CLEANED)
    return notes + _trimmed(model)


def _write_transformers(model: DualEncoder, plan: _Plan, folder: Path) -> list[str]:
    import transformers

    text_config, own = plan.config["text_config"], model.tokenizer
    if model.is_causal_text:
        end = _end_of(model)
        if end == 2 != text_config["vocab_size"] - 1:
            raise ValueError("its CLIPModel reads no texts at an end token of id 2")
        text_config["eos_token_id"] = end
        text_config |= {"bos_token_id": own.sot_id, "pad_token_id": own.pad_id}
    inner = tokenizers.for_transformers(own, folder)
    kind = "Siglip" if plan.config["model_type"] == "siglip" else "CLIP"
    clip: Any = build_clip({"library": "transformers", "hf_config": plan.config})
    clip.load_state_dict(plan.state)
    clip.save_pretrained(folder)
    pixels = getattr(transformers, f"{kind}ImageProcessor")(**plan.preprocess)
    pixels.save_pretrained(folder)
    notes = [_FAST, *([_FILLED] if inner.pad_token_id != own.pad_id else [])]
    notes += [_CROPPED] if plan.preprocess["do_center_crop"] else []
    return notes + _trimmed(model)


def _trimmed(model: DualEncoder) -> list[str]:
    return [_TRIMMED] if model.config["preprocess_cfg"].get("trim") else []


_WRITERS: dict[str, Callable[[DualEncoder, _Plan, Path], list[str]]] = {
    "open_clip": _write_open_clip,
    "transformers": _write_transformers,
}
