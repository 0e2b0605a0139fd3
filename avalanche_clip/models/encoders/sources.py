"""What lies beside weights: configuration, preprocessing, tokenizer, grown table."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import inside, read_json
from avalanche_clip.models.encoders import architectures, weights
from avalanche_clip.models.encoders.config_schema import check_model_file
from avalanche_clip.models.encoders.hf_loading import (
    CONFIG_NAME,
    anchor,
    hf_folder,
)
from avalanche_clip.models.images.preprocessing import read_image_processor
from avalanche_clip.models.text.settings import HF_TOKENIZER_FILES, is_hub_id

# what transformers reads of a tokenizer's or a tower's folder
_READ = (".json", ".jsonl", ".txt", ".model", ".bpe", ".tiktoken")
_TIMM_FOLDER = "local-dir:"


@dataclass
class Stored:
    """A model configuration in a file.

    :param path: the file.
    :param config: full configuration, file names in it absolute.
    :param preprocess: what the folder states of preprocessing.
    :param source: the file that states it, None if none does.
    :param tokenizer: whether the folder states a tokenizer.
    :param growth: facts of a grown token table, or None.
    """

    path: Path
    config: dict[str, Any]
    preprocess: dict[str, Any]
    source: str | None
    tokenizer: bool
    growth: dict[str, Any] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether ``DualEncoder.save`` wrote the folder."""
        return self.path.name == weights.CONFIG_FILE


def read_stored(path: Path) -> Stored:
    """Read a model configuration and what belongs to it in its folder.

    :param path: ``dual_encoder.json``, ``open_clip_config.json``, or the
        ``config.json`` of transformers.
    :raises ValueError: naming the file and the cause.
    """
    if path.name == weights.CONFIG_FILE:
        return _read_ours(path)
    if path.name == CONFIG_NAME:
        return read_transformers(str(path.parent), None)
    return read_open_clip(path, path.parent)


def _read_ours(path: Path) -> Stored:
    folder = path.parent
    facts = read_json(path, dict)
    check_model_file(facts, path)
    for name, digest in facts["files"].items():
        file = inside(folder, name, path)
        if not file.is_file():
            raise FileNotFoundError(f"{path} lists the file {name}, which is missing.")
        if weights.file_hash(file) != digest:
            raise ValueError(
                f"{file} is damaged or was changed: it does not have the hash that "
                f"{path.name} lists. Use another copy, or save the model again."
            )
    config = architectures.complete_config(facts["config"], str(path))
    _check_listed(config, facts["files"], folder, path)
    _anchor(config, folder, path)
    growth = facts.get("growth")
    if growth is not None:
        growth = copy.deepcopy(growth)
        _anchor_tokenizer(growth["tokenizer"], folder, path)
        growth["folder"] = str(folder)
    return Stored(
        path, config, config["preprocess_cfg"], str(path), True, growth=growth
    )


def _check_listed(
    config: dict[str, Any], files: dict[str, str], folder: Path, path: Path
) -> None:
    """Make sure that every file a tokenizer or a text tower is read from is listed."""
    for name, file in weights.files_of(config, folder, path).items():
        if file.suffix in _READ and name not in files:
            raise ValueError(
                f"{path} lists no hash of the file {file} under 'files'; add its "
                "SHA-256 there, or remove the file, or save the model again."
            )


def _anchor(config: dict[str, Any], folder: Path, path: Path) -> None:
    """Make the file names in a configuration absolute, inside its folder."""
    if config.get("tokenizer"):
        _anchor_tokenizer(config["tokenizer"], folder, path)
    text_cfg = config.get("model_cfg", {}).get("text_cfg", {})
    if text_cfg.get("hf_model_name"):
        text_cfg["hf_model_name"] = anchor(
            text_cfg["hf_model_name"], folder, path, hub=True
        )

    vision = config.get("model_cfg", {}).get("vision_cfg", {})
    name = vision.get("timm_model_name") or ""
    if name.lower().startswith(_TIMM_FOLDER):
        inner = anchor(name[len(_TIMM_FOLDER) :], folder, path, hub=False)
        vision["timm_model_name"] = _TIMM_FOLDER + inner


def _require_hub_ids(text_cfg: dict[str, Any], path: Path) -> None:
    """Refuse paths in a configuration of the hub, which has no folder here."""
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if text_cfg.get(key) and not is_hub_id(text_cfg[key]):
            raise ValueError(
                f"{path} names {text_cfg[key]!r} as {key}; on the hub only ids of the "
                "hub are allowed."
            )


def _anchor_tokenizer(spec: dict[str, Any], folder: Path, path: Path) -> None:
    if "file" in spec:
        on_hub = spec.get("type") in ("hf", "open_clip_hf")
        spec["file"] = anchor(spec["file"], folder, path, hub=on_hub)


def read_open_clip(path: Path, folder: Path | None) -> Stored:
    """Read an ``open_clip_config.json``.

    :param path: the file.
    :param folder: where its other files lie; None if they are on the hub.
    """
    raw = read_json(path, dict)
    if "model_cfg" not in raw:
        raise ValueError(f"{path} lacks 'model_cfg'; is it an open_clip_config.json?")
    raw = {k: v for k, v in raw.items() if k != "tokenizer"}
    config = architectures.complete_config(raw, str(path))
    stated = architectures.stated_preprocess(raw, str(path))
    source: str | None = str(path) if stated else None
    text_cfg = config["model_cfg"]["text_cfg"]
    spec = config["tokenizer"]
    if folder is None:
        _require_hub_ids(text_cfg, path)
    else:
        local = spec["type"] == "open_clip_hf" and _has_tokenizer(folder)
        _anchor({**config, "tokenizer": None if local else spec}, folder, path)
        if local:
            spec["file"] = str(folder)
        if source is None:
            size = config["preprocess_cfg"]["size"]
            stated, source = read_image_processor(folder, size)
            config["preprocess_cfg"].update(stated)
    keys = ("hf_tokenizer_name", "tokenizer_kwargs")
    return Stored(path, config, stated, source, any(text_cfg.get(k) for k in keys))


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in HF_TOKENIZER_FILES)


def read_transformers(source: str, cache: str | None) -> Stored:
    """Read the configuration of a transformers model.

    :param source: folder, or id on the hub.
    :param cache: download folder.
    """
    folder = hf_folder(source, cache)
    is_local = Path(source).expanduser() == folder
    spec = {"type": "hf", "file": str(folder) if is_local else source}
    config = architectures.complete_config(
        {"hf_config": read_json(folder / CONFIG_NAME, dict), "tokenizer": spec},
        str(folder / CONFIG_NAME),
    )
    size = config["preprocess_cfg"].pop("size")
    stated, stater = read_image_processor(folder, size)
    config["preprocess_cfg"] |= {**stated, "size": size}
    has_tokenizer = not is_local or _has_tokenizer(folder)
    return Stored(folder / CONFIG_NAME, config, stated, stater, has_tokenizer)


def stored_beside(folder: Path, library: str) -> Stored | None:
    """Read the configuration in a folder that fits a library best, if any.

    :param folder: holds weights.
    :param library: of the model that is built.
    """
    files = weights.config_files(folder)
    if not files:
        return None
    is_hf = library == "transformers"
    fitting = [path for path in files if (path.name == CONFIG_NAME) == is_hf]
    ours = [path for path in files if path.name == weights.CONFIG_FILE]
    return read_stored((ours or fitting or files)[0])


def adopt(
    config: dict[str, Any], stated: dict[str, Any], *, whole: bool = False
) -> None:
    """Let stated preprocessing replace that of a configuration, in place.

    :param config: full configuration of the model being built.
    :param stated: what belongs to the weights.
    :param whole: whether ``stated`` is complete; else what it leaves open stays.
    """
    now = config["preprocess_cfg"]
    kept = {} if whole else dict(now)
    if "resize_mode" in stated:
        kept.pop("resize_to", None)  # it belongs to the mode
    config["preprocess_cfg"] = {**kept, **stated, "size": now["size"]}
