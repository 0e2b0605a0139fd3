"""Weight files in every format that open_clip and transformers write."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from avalanche_clip.common.arrays import (
    read_safetensors,
    safetensors_metadata,
    write_safetensors,
)
from avalanche_clip.common.checks import require_choice
from avalanche_clip.common.files import (
    found_in,
    inside,
    read_json,
    replacing_folder,
    require_file,
    unreadable,
)
from avalanche_clip.models.encoders.hf_loading import CONFIG_NAME, HF_MODEL_TYPES
from avalanche_clip.models.encoders.output import PRECISIONS
from avalanche_clip.models.encoders.torch_files import ScriptedModule, read_torch_file
from avalanche_clip.models.encoders.towers import plain_name
from avalanche_clip.models.encoders.weight_layouts import (
    OPENAI_FACTS,
    strip_prefixes,
    take_state,
)
from avalanche_clip.models.text.build import portable_spec
from avalanche_clip.models.text.settings import is_hub_id
from avalanche_clip.models.text.tokenizers import CaptionTokenizer

CONFIG_FILE = "dual_encoder.json"
OPEN_CLIP_FILE = "open_clip_config.json"
WEIGHTS_FILE = "model.safetensors"
TEXT_CONFIG_FOLDER = "text_config"
REWRITE = "avalanche_clip.models.rewrite_file({!r}) adds it to files you trust"

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_OPEN_CLIP_NAMES = (
    "open_clip_model.safetensors",
    *(f"open_clip_pytorch_model.{kind}" for kind in ("safetensors", "bin", "pth")),
)
_PLAIN_NAMES = (
    *(WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin"),
    *("pytorch_model.pth", "pytorch_model.bin.index.json", "model.pth"),
)


@dataclass
class LoadedWeights:
    """Tensors by name, and what the file says about them.

    :param state: state dictionary, on the CPU.
    :param config: model configuration stored in the file, or None.
    :param is_openai: True for OpenAI's own archives, which are always QuickGELU.
    """

    state: dict[str, Tensor] = field(repr=False)
    config: dict[str, Any] | None = None
    is_openai: bool = False


def config_files(folder: Path) -> list[Path]:
    """List the model configurations of a folder, ours first.

    A ``config.json`` of something else than CLIP or SigLIP is none of them.
    """
    names = (CONFIG_FILE, OPEN_CLIP_FILE, CONFIG_NAME)
    found = [folder / name for name in names if (folder / name).is_file()]
    return [path for path in found if path.name != CONFIG_NAME or _is_clip(path)]


def _is_clip(path: Path) -> bool:
    try:
        return read_json(path, dict).get("model_type") in HF_MODEL_TYPES
    except ValueError:
        return False


def find_weights(folder: Path, config: str | None = None) -> Path | None:
    """Return the weight file (or shard index) of a model folder, or None.

    :param folder: folder of open_clip, transformers or ``DualEncoder.save``.
    :param config: name of the configuration file that the weights belong to: in a
        folder that holds those of both libraries each has its own. None for any.
    :raises ValueError: if several files without a standard name compete.
    """
    names = {
        CONFIG_FILE: (WEIGHTS_FILE,),
        CONFIG_NAME: _PLAIN_NAMES,
        OPEN_CLIP_FILE: (*_OPEN_CLIP_NAMES, *_PLAIN_NAMES),
        None: (WEIGHTS_FILE, *_OPEN_CLIP_NAMES, *_PLAIN_NAMES[1:]),
    }[config]
    if config == OPEN_CLIP_FILE and len(config_files(folder)) > 1:
        names = _OPEN_CLIP_NAMES  # plain ones belong to the other configuration
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if config == CONFIG_FILE:
        return None
    suffixes = (".safetensors", *_TORCH_SUFFIXES)
    taken = (*_OPEN_CLIP_NAMES, *_PLAIN_NAMES, "token_usage.safetensors")
    unnamed = sorted(
        p for p in folder.iterdir() if p.suffix in suffixes and p.name not in taken
    )
    if len(unnamed) > 1:
        listed = ", ".join(path.name for path in unnamed)
        raise ValueError(
            f"{folder} holds several weight files ({listed}); give the path of one."
        )
    return unnamed[0] if unnamed else None


def read_weights(
    path: str | Path, *, required: bool = False, verify: bool = True
) -> LoadedWeights:
    """Read a weight file without running any code stored in it.

    :param path: ``.safetensors``; ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``
        (state dictionary, open_clip training checkpoint, or TorchScript
        archive); or the ``.index.json`` of a sharded checkpoint.
    :param required: refuse safetensors without a checksum. Those that hold a
        configuration as :func:`save_weights` writes it need one in any case.
    :param verify: False skips the bytes of large tensors.
    :return: tensors under the names of the wrapped model.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for another format, for files that need unpickling of
        arbitrary objects, for damaged files and for files without weights.
    """
    path = require_file(path, "give the path of a weight file")
    if path.name.endswith(".index.json"):
        loaded = _read_shards(path, verify)
    else:
        loaded = _read_file(path, required, verify)
    loaded.state = strip_prefixes(loaded.state)
    if not loaded.state:
        raise ValueError(f"{path} holds no weights.")
    return loaded


def _read_shards(path: Path, verify: bool) -> LoadedWeights:
    index = read_json(path, dict)
    parts = index.get("weight_map")
    if not isinstance(parts, dict) or {type(name) for name in parts.values()} - {str}:
        cause = "it has no mapping 'weight_map' of tensors to names of shards"
        raise unreadable(path, "an index of weights", cause)
    state: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        shard = inside(path.parent, name, path)
        if not shard.is_file():
            raise ValueError(f"{path} names the shard {name}, which is missing.")
        found = _read_file(shard, False, verify).state
        wanted = {key for key, value in parts.items() if value == name}
        twice = sorted(state.keys() & found.keys())
        if twice or not wanted <= found.keys():
            what = f"holds {twice[0]} too" if twice else "lacks tensors of the index"
            raise ValueError(f"{path} does not fit its shards: {name} {what}.")
        state.update(found)
    return LoadedWeights(state)


def _read_file(path: Path, required: bool, verify: bool) -> LoadedWeights:
    if path.suffix == ".safetensors":
        return _read_safetensors(path, required, verify)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    raise ValueError(
        f"{path} is no weight file that can be read (found {found_in(path)}); give"
        f" .safetensors, {', '.join(_TORCH_SUFFIXES)} or an .index.json."
    )


def _read_safetensors(path: Path, required: bool, verify: bool) -> LoadedWeights:
    config = _own_config(safetensors_metadata(path).get("config", "null"))
    state, _ = read_safetensors(
        path,
        required=required or config is not None,
        verify=verify,
        rewrite=REWRITE.format(str(path.parent if required else path)),
    )
    return LoadedWeights(state, config)


def _own_config(text: str) -> dict[str, Any] | None:
    """Return a configuration of ours, None for somebody else's word."""
    try:
        config = json.loads(text)
    except ValueError:
        return None
    return config if isinstance(config, dict) and "library" in config else None


def _read_torch(path: Path) -> LoadedWeights:
    content = read_torch_file(path)
    if isinstance(content, ScriptedModule):
        content = dict(content.tensors())
    state = take_state(content, path)
    is_openai = all(key in state for key in OPENAI_FACTS)
    state = {k: v for k, v in state.items() if k not in OPENAI_FACTS}
    return LoadedWeights(state, is_openai=is_openai)


# ------------------------------------------------------------------ writing
class Storable(Protocol):
    """What is asked of a :class:`DualEncoder` that is stored.

    :ivar clip: the wrapped model.
    :ivar own_tokenizer: its tokenizer, None before it is first used.
    :ivar plain_shapes: shape of each tensor of the plain architecture.
    """

    clip: Any
    own_tokenizer: CaptionTokenizer | None
    plain_shapes: dict[str, tuple[int, ...]]

    @property
    def config(self) -> dict[str, Any]:
        """Full configuration, a copy."""

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer, made when it is first asked for."""

    def check_plain(self, action: str, *, grown: str | None = None) -> None:
        """Raise ValueError unless the weights are those of the architecture."""


def save_weights(model: Storable, path: str | Path, *, precision: str = "fp32") -> None:
    """Write a model's weights with its configuration as one safetensors file.

    The file carries a checksum of names, shapes, bytes and configuration, so it can
    be verified wherever it is moved to.

    :param model: plain dual encoder (adapters are stored by checkpoints).
    :param path: file to write, replaced if it exists.
    :param precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` for floating point
        tensors; the logarithm of the scale stays float32.
    :raises ValueError: if adapters are attached.
    """
    require_choice("precision", precision, PRECISIONS)
    state = {}
    for name, tensor in model.clip.state_dict().items():
        if tensor.is_floating_point():
            keep = name in ("logit_scale", "logit_bias")
            tensor = tensor.to(torch.float32 if keep else PRECISIONS[precision])
        state[plain_name(name)] = tensor
    strange = sorted(state.keys() ^ model.plain_shapes.keys())
    if strange:
        raise ValueError(
            f"{path} is not written: the model's tensors are not those of its "
            f"architecture ({strange[0]}, ...), so nothing could load them. Detach "
            "what was attached, or use save_state for a whole strategy."
        )
    config = portable_config(model)
    write_safetensors(path, state, {"config": json.dumps(config, sort_keys=True)})


def portable_config(model: Storable) -> dict[str, Any]:
    """Return a configuration that names no file of this machine.

    A tokenizer in a file is told by the hash of its content instead.
    """
    config = model.config
    config["tokenizer"] = portable_spec(config.get("tokenizer"), model.own_tokenizer)
    text = config.get("model_cfg", {}).get("text_cfg", {})
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = text.get(key)
        if name and (Path(name).exists() or not is_hub_id(name)):
            text[key] = Path(name).name
    return config


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def files_of(config: dict[str, Any], folder: Path, source: Path) -> dict[str, Path]:
    """Find the files beside the weights that a configuration is read with, by name.

    :param source: what holds the configuration, for messages.
    """
    text_cfg = config.get("model_cfg", {}).get("text_cfg", {})
    names = [(config.get("tokenizer") or {}).get("file"), text_cfg.get("hf_model_name")]
    places = [inside(folder, name, source) for name in names if name]
    found = [path for place in places for path in (place, *place.rglob("*"))]
    base = os.path.abspath(folder.expanduser())
    return {p.relative_to(base).as_posix(): p for p in sorted(found) if p.is_file()}


def save_text_config(clip: Any, config: dict[str, Any], folder: Path) -> None:
    """Store the configuration of a transformers text tower beside the weights.

    :param clip: wrapped model.
    :param config: changed in place: names the stored copy.
    :param folder: existing folder.
    """
    text_cfg = config.get("model_cfg", {}).get("text_cfg", {})
    if text_cfg.get("hf_model_name"):
        with replacing_folder(folder / TEXT_CONFIG_FOLDER) as target:
            clip.text.config.save_pretrained(target)
        text_cfg["hf_model_name"] = TEXT_CONFIG_FOLDER
