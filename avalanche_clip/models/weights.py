"""Weight files in every format that open_clip and transformers write."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from avalanche_clip.models.dual_encoder import DualEncoder

CONFIG_FILE = "dual_encoder.json"
WEIGHTS_FILE = "model.safetensors"
TEXT_CONFIG_FOLDER = "text_config"

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_PREFERRED = (
    WEIGHTS_FILE,
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "pytorch_model.bin.index.json",
    "model.pth",
)
# numbers that OpenAI's archives keep beside the weights
_OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")


@dataclass
class LoadedWeights:
    """Tensors by name, and what the file says about them.

    :param state: state dictionary, on the CPU.
    :param config: model configuration stored in the file, or None.
    :param is_openai: True for OpenAI's own archives, which are always QuickGELU.
    """

    state: dict[str, Tensor]
    config: dict[str, Any] | None = None
    is_openai: bool = False


def find_weights(folder: Path) -> Path | None:
    """Return the weight file (or shard index) of a model folder, or None.

    :param folder: folder of open_clip, transformers or ``DualEncoder.save``.
    :raises ValueError: if several files without a standard name compete.
    """
    for name in _PREFERRED:
        if (folder / name).is_file():
            return folder / name
    suffixes = (".safetensors", *_TORCH_SUFFIXES)
    others = sorted(p for p in folder.iterdir() if p.suffix in suffixes)
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(
            f"{folder} holds several weight files ({names}); give the path of one."
        )
    return others[0] if others else None


def read_weights(path: str | Path) -> LoadedWeights:
    """Read a weight file without running any code stored in it.

    :param path: ``.safetensors``; ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``
        (state dictionary, open_clip training checkpoint, or TorchScript
        archive); or the ``.index.json`` of a sharded checkpoint.
    :return: tensors under the names of the wrapped model.
    :raises ValueError: for another format, for files that need unpickling of
        arbitrary objects, and for files without weights.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        loaded = _read_shards(path)
    elif path.suffix == ".safetensors":
        loaded = _read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        loaded = _read_torch(path)
    else:
        raise ValueError(
            f"{path} is no weight file that can be read; give .safetensors,"
            f" {', '.join(_TORCH_SUFFIXES)} or an .index.json."
        )
    for prefix in ("module.", "_orig_mod.", "module.", "clip."):
        loaded.state = _strip(loaded.state, prefix)
    if not loaded.state:
        raise ValueError(f"{path} holds no weights.")
    return loaded


def _strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not state or not all(key.startswith(prefix) for key in state):
        return state
    return {key[len(prefix) :]: value for key, value in state.items()}


def _read_shards(path: Path) -> LoadedWeights:
    index = json.loads(path.read_text(encoding="utf-8"))
    state: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        shard = path.parent / name
        if not shard.is_file():
            raise ValueError(f"{path} names the shard {name}, which is missing.")
        state.update(read_weights(shard).state)
    return LoadedWeights(state)


def _read_safetensors(path: Path) -> LoadedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get("config")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a valid safetensors file ({error}); download or save it"
            " again."
        ) from error
    return LoadedWeights(state, json.loads(stored) if stored else None)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torch(path: Path) -> LoadedWeights:
    if _is_torchscript(path):
        script = torch.jit.load(str(path), map_location="cpu")
        return _take_state(dict(script.state_dict()), path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}). Files that"
            " pickle whole objects run code on loading and are refused; save"
            " model.state_dict() instead."
        ) from error
    return _take_state(content, path)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _take_state(content: Any, path: Path) -> LoadedWeights:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a state dictionary; save"
            " model.state_dict()."
        )
    is_openai = all(key in content for key in _OPENAI_FACTS)
    state = {k: v for k, v in content.items() if k not in _OPENAI_FACTS}
    strange = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise ValueError(
            f"{path} holds more than tensors ({strange[0]!r} is a"
            f" {type(state[strange[0]]).__name__}); give a state dictionary or a"
            " checkpoint with the key 'state_dict'."
        )
    return LoadedWeights(state, is_openai=is_openai)


def load_into(clip: Any, loaded: LoadedWeights, source: str | Path) -> None:
    """Copy weights into a freshly built model, all of them or none.

    Older key layouts of open_clip are translated. Nothing is resized or left
    at random.

    :param clip: wrapped open_clip or transformers model.
    :param loaded: result of :func:`read_weights`.
    :param source: named in messages.
    :raises ValueError: if keys are missing, unexpected or of another shape.
    """
    own = clip.state_dict()
    state = _translate(clip, loaded.state)
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{len(found)} {what} ({'; '.join(found[:3])}{', ...' if found[3:] else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if found
    ]
    if problems:
        raise ValueError(
            f"The weights in {source} do not fit the model: {'; '.join(problems)}. Use"
            " the model name or configuration they were trained with."
        )
    clip.load_state_dict(state)


def _translate(clip: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = clip.state_dict()
    state = {k: v for k, v in state.items() if not _is_stale(k, own)}
    if hasattr(clip, "visual"):
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_state_dict(clip, state)
        if "positional_embedding" in state and "positional_embedding" not in own:
            state = convert_to_custom_text_state_dict(state)
        elif "positional_embedding" in own and "text.positional_embedding" in state:
            state = {k.removeprefix("text."): v for k, v in state.items()}
    for name in ("logit_scale", "logit_bias"):
        # scalar in some releases, one element in others
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    return state


def _is_stale(key: str, own: dict[str, Tensor]) -> bool:
    """Recognise buffers that older transformers releases stored."""
    return key.endswith(".position_ids") and key not in own


def save_weights(
    model: DualEncoder, path: str | Path, *, precision: str = "fp32"
) -> None:
    """Write a model's weights with its configuration as one safetensors file.

    :param model: plain dual encoder (adapters are stored by checkpoints).
    :param path: file to write, replaced if it exists.
    :param precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` for floating point
        tensors; the logarithm of the scale stays float32.
    """
    from safetensors.torch import save_file

    from avalanche_clip.models.dual_encoder import PRECISIONS

    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r} is unknown; use one of {list(PRECISIONS)}."
        )
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end with .safetensors.")
    state = {}
    for name, tensor in model.clip.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point():
            keep = name in ("logit_scale", "logit_bias")
            tensor = tensor.to(torch.float32 if keep else PRECISIONS[precision])
        state[name] = tensor.clone()
    metadata = {"format": "pt", "config": json.dumps(model.config, sort_keys=True)}
    save_file(state, str(path), metadata=metadata)


def save_text_config(clip: Any, config: dict[str, Any], folder: Path) -> None:
    """Store the configuration of a transformers text tower beside the weights.

    :param clip: wrapped model.
    :param config: changed in place: names the stored copy.
    :param folder: existing folder.
    """
    text_cfg = config.get("model_cfg", {}).get("text_cfg", {})
    if text_cfg.get("hf_model_name"):
        clip.text.config.save_pretrained(folder / TEXT_CONFIG_FOLDER)
        text_cfg["hf_model_name"] = TEXT_CONFIG_FOLDER


__all__ = [
    "CONFIG_FILE",
    "TEXT_CONFIG_FOLDER",
    "WEIGHTS_FILE",
    "LoadedWeights",
    "find_weights",
    "load_into",
    "read_weights",
    "save_text_config",
    "save_weights",
]
