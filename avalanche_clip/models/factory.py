"""One function that creates every supported model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avalanche_clip.models import architectures, weights
from avalanche_clip.models.agreement import (
    check_same_architecture,
    check_tag_activation,
)
from avalanche_clip.models.dual_encoder import PRECISIONS, DualEncoder
from avalanche_clip.models.model_folder import read_growth, restore_growth
from avalanche_clip.models.presets import (
    PRESET_WEIGHTS,
    PRESETS,
    preset_config,
    preset_weights,
)

_HF_PREFIX = "hf:"
_HUB_PREFIX = "hf-hub:"
_LOCAL_PREFIX = "local-dir:"
_OPEN_CLIP_FILE = "open_clip_config.json"


@dataclass
class _Request:
    """What a call asks for, resolved."""

    name: str
    config: dict[str, Any]
    weights: Path | None = None
    label: str | None = None
    hf_source: str | None = None
    growth: dict[str, Any] | None = None


def create_dual_encoder(
    name: str | Path | Mapping[str, Any],
    pretrained: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
) -> DualEncoder:
    """Create a dual encoder with its tokenizer and preprocessing.

    :param name: what to build:

        - an open_clip model name (``"ViT-B-32"``);
        - ``"tiny-emoji"`` or ``"tiny-emoji-vit"``;
        - ``"hf:<folder or hub id>"``: a transformers CLIP or SigLIP model
          with its weights; ``"hf-hub:<id>"``: an open_clip hub model;
        - a folder written by ``DualEncoder.save``, by open_clip or by
          transformers, with its weights;
        - a configuration dictionary, such as ``DualEncoder.config``.
    :param pretrained: weights: a tag of the model (``"openai"``,
        ``"emoji-2010"``), a local file, or a local folder. None leaves the
        weights random, except where ``name`` already says where they are.
    :param cache_dir: folder for downloads.
    :param precision: storage type of frozen weights, ``"fp32"``, ``"fp16"``
        or ``"bf16"``; with a 16-bit type the model comes frozen.
    :param device: where the model is put.
    :return: the model, in train mode.
    :raises ValueError: for unknown names and tags, and for weights that do
        not belong to the architecture (QuickGELU against GELU included).
    :raises FileNotFoundError: if package data are missing.

    Random weights come from torch's global CPU generator.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r} is unknown; use one of {list(PRECISIONS)}."
        )
    cache = None if cache_dir is None else str(cache_dir)
    request = _resolve(name, pretrained, cache)
    if request.hf_source is not None and request.weights is None:
        clip = _load_transformers(request, cache)
    else:
        clip = architectures.build_clip(request.config)
        if request.weights is not None and request.growth is None:
            _load_file(clip, request)
    model = DualEncoder(
        clip,
        request.config,
        pretrained=request.label,
        precision=precision,
        cache_dir=cache,
    )
    if request.growth is not None:
        restore_growth(model, request.growth)
        _load_file(clip, request)
        model.reset_scale_bound()
    return model.to(device).train()


def _resolve(name: Any, pretrained: str | Path | None, cache: str | None) -> _Request:
    if isinstance(name, Mapping):
        config = architectures.complete_config(dict(name))
        return _with_weights(_Request("the configuration", config), pretrained, cache)
    name = str(name)
    if name in PRESETS:
        request = _Request(name, preset_config(name))
        if pretrained in PRESET_WEIGHTS:
            request.weights = preset_weights(name, str(pretrained))
            request.label = str(pretrained)
            return request
        return _with_weights(request, pretrained, cache)
    if name.startswith(_HF_PREFIX):
        request = _from_transformers(name.removeprefix(_HF_PREFIX), cache)
        return _with_weights(request, pretrained, cache)
    if name.startswith(_HUB_PREFIX):
        return _with_weights(_from_hub(name, cache), pretrained, cache)
    plain = name.replace("/", "-")
    if plain in _open_clip_names():
        from open_clip.factory import get_model_config

        config = architectures.complete_config(get_model_config(plain))
        return _with_weights(_Request(plain, config), pretrained, cache)
    folder = Path(name.removeprefix(_LOCAL_PREFIX))
    if folder.is_dir():
        return _with_weights(_from_folder(folder, cache), pretrained, cache)
    raise _unknown_name(name)


def _open_clip_names() -> list[str]:
    from open_clip.factory import list_models

    return list_models()


def _unknown_name(name: str) -> ValueError:
    known = [*PRESETS, *_open_clip_names()]
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(by_lower[c] for c in close)}?" if close else ""
    return ValueError(
        f"No model or folder is called {name!r}.{hint} Names are open_clip's"
        f" (open_clip.list_models()), {', '.join(PRESETS)}, 'hf:<folder or id>',"
        " 'hf-hub:<id>' or an existing folder."
    )


# ------------------------------------------------------------------ folders
def _from_folder(folder: Path, cache: str | None) -> _Request:
    if (folder / weights.CONFIG_FILE).is_file():
        facts = json.loads((folder / weights.CONFIG_FILE).read_text(encoding="utf-8"))
        config = _anchor(architectures.complete_config(facts["config"]), folder)
        request = _Request(str(folder), config, label=str(folder))
        request.growth = read_growth(folder)
    elif (folder / _OPEN_CLIP_FILE).is_file():
        config = read_open_clip_config(folder / _OPEN_CLIP_FILE)
        if config["tokenizer"].get("type") == "open_clip_hf":
            config["tokenizer"]["file"] = str(folder)
        request = _Request(str(folder), config, label=str(folder))
    elif (folder / "config.json").is_file():
        return _from_transformers(str(folder), cache)
    else:
        raise ValueError(
            f"{folder} holds no model: expected {weights.CONFIG_FILE},"
            f" {_OPEN_CLIP_FILE} or config.json."
        )
    request.weights = weights.find_weights(folder)
    if request.weights is None:
        raise ValueError(
            f"{folder} holds a configuration but no weights; for random weights pass"
            " the content of the configuration as a dictionary."
        )
    return request


def read_open_clip_config(path: Path) -> dict[str, Any]:
    """Read an ``open_clip_config.json`` into the full configuration.

    :param path: the file.
    :return: full configuration.
    :raises ValueError: if it is no such file.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    if "model_cfg" not in stored:
        raise ValueError(f"{path} lacks 'model_cfg'; is it an open_clip_config.json?")
    return architectures.complete_config(stored)


def _anchor(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the file names in a saved configuration absolute."""
    spec = config.get("tokenizer") or {}
    if "file" in spec and (folder / spec["file"]).exists():
        spec["file"] = str((folder / spec["file"]).resolve())
    text_cfg = config.get("model_cfg", {}).get("text_cfg", {})
    if text_cfg.get("hf_model_name") == weights.TEXT_CONFIG_FOLDER:
        text_cfg["hf_model_name"] = str((folder / weights.TEXT_CONFIG_FOLDER).resolve())
    return config


def _from_hub(name: str, cache: str | None) -> _Request:
    from open_clip.pretrained import download_pretrained_from_hf

    ident = name.removeprefix(_HUB_PREFIX)
    try:
        path = download_pretrained_from_hf(
            ident, filename=_OPEN_CLIP_FILE, cache_dir=cache
        )
        file = download_pretrained_from_hf(ident, cache_dir=cache)
    except Exception as error:  # the hub client raises types of several libraries
        raise RuntimeError(
            f"{name} could not be downloaded ({error}); download the repository and"
            " give its folder."
        ) from error
    config = read_open_clip_config(Path(path))
    if config["tokenizer"].get("type") == "open_clip_hf":
        config["tokenizer"].setdefault("file", ident)
    return _Request(name, config, Path(file), label=name)


# ------------------------------------------------------------- transformers
def _from_transformers(source: str, cache: str | None) -> _Request:
    from transformers import AutoConfig

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source} is no transformers folder: it has no config.json.")
    try:
        hf_config = AutoConfig.from_pretrained(source, cache_dir=cache).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"transformers finds no model configuration at {source!r} ({error}); give"
            " an existing folder or a reachable hub id."
        ) from error
    folder = _processor_folder(source, cache)
    preprocess = architectures.read_image_processor(folder) if folder else {}
    config = architectures.complete_config(
        {
            "hf_config": json.loads(json.dumps(hf_config, default=str)),
            "preprocess_cfg": preprocess,
            "tokenizer": {"type": "hf", "file": source},
        }
    )
    return _Request(f"hf:{source}", config, label=source, hf_source=source)


def _processor_folder(source: str, cache: str | None) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    for name in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(
            source,
            name,
            cache_dir=cache,
            _raise_exceptions_for_missing_entries=False,
        )
        if path is not None:
            return Path(path).parent
    return None


def _load_transformers(request: _Request, cache: str | None) -> torch.nn.Module:
    import transformers

    kind = request.config["hf_config"]["model_type"]
    cls = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind]
    try:
        clip, info = cls.from_pretrained(
            request.hf_source,
            cache_dir=cache,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights of {request.hf_source} cannot be loaded ({error})."
        ) from error
    problems = {
        what: sorted(map(str, info[key]))
        for what, key in (
            ("missing", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if info[key]
    }
    if problems:
        listed = "; ".join(f"{len(v)} {k} ({v[0]})" for k, v in problems.items())
        raise ValueError(
            f"The weights in {request.hf_source} do not fit its config.json: {listed}."
        )
    return clip


# ------------------------------------------------------------------ weights
def _with_weights(
    request: _Request, pretrained: str | Path | None, cache: str | None
) -> _Request:
    """Add the weights that ``pretrained`` names to a request."""
    if pretrained is None:
        return request
    path = Path(pretrained)
    if path.is_file():
        request.weights = path
        _check_config_beside(path, request)
        named = path.name == weights.WEIGHTS_FILE
        request.growth = read_growth(path.parent) if named else None
    elif path.is_dir():
        request.weights = _weights_in(path, request)
        request.growth = read_growth(path)
    else:
        request.weights = _tagged(request, str(pretrained), cache)
        request.growth = None
    request.label = str(pretrained)
    return request


def _config_files(folder: Path) -> list[Path]:
    names = (weights.CONFIG_FILE, _OPEN_CLIP_FILE, "config.json")
    return [folder / name for name in names if (folder / name).is_file()]


def _read_config(file: Path) -> dict[str, Any]:
    stored = json.loads(file.read_text(encoding="utf-8"))
    return architectures.complete_config(stored.get("config", stored))


def _check_config_beside(path: Path, request: _Request) -> None:
    """Compare with the configuration that was saved next to a weight file."""
    for file in _config_files(path.parent):
        try:
            stored = _read_config(file)
        except (ValueError, KeyError, AttributeError):
            continue  # the configuration of something else
        check_same_architecture(request.config, stored, str(path))
        return


def _weights_in(folder: Path, request: _Request) -> Path:
    for file in _config_files(folder)[:1]:
        check_same_architecture(request.config, _read_config(file), str(folder))
    found = weights.find_weights(folder)
    if found is None:
        raise ValueError(f"{folder} holds no weight file.")
    return found


def _tagged(request: _Request, tag: str, cache: str | None) -> Path:
    if request.name in PRESETS:
        return preset_weights(request.name, tag)
    tags: list[str] = []
    if request.name in _open_clip_names():
        from open_clip.pretrained import list_pretrained_tags_by_model

        tags = list_pretrained_tags_by_model(request.name)
    if tag.lower().replace("-", "_") not in tags and tag.lower() not in tags:
        have = f"tags {', '.join(tags)}" if tags else "no tags"
        raise ValueError(
            f"pretrained={tag!r} is neither a file, a folder nor a tag of"
            f" {request.name}, which has {have}."
        )
    return _download_tag(request, tag, cache)


def _download_tag(request: _Request, tag: str, cache: str | None) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    facts = get_pretrained_cfg(request.name, tag)
    check_tag_activation(request.name, request.config, tag, facts)
    preprocess = request.config["preprocess_cfg"]
    for key in ("mean", "std", "interpolation", "resize_mode"):
        if facts.get(key) is not None:
            preprocess[key] = facts[key]
    try:
        return Path(download_pretrained(facts, cache_dir=cache))
    except Exception as error:  # the download raises types of several libraries
        raise RuntimeError(
            f"The weights {tag!r} of {request.name} could not be downloaded ({error});"
            " give a local file as pretrained."
        ) from error


def _load_file(clip: torch.nn.Module, request: _Request) -> None:
    path = request.weights
    assert path is not None
    loaded = weights.read_weights(path)
    if loaded.config is not None:
        stored = architectures.complete_config(loaded.config)
        check_same_architecture(request.config, stored, str(path))
    if loaded.is_openai:
        facts = {"quick_gelu": True}
        check_tag_activation(request.name, request.config, str(path), facts)
    weights.load_into(clip, loaded, path)


__all__ = ["create_dual_encoder", "read_open_clip_config"]
