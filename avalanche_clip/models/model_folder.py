"""Folders that hold a whole model: configuration, tokenizer, weights, grown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_clip._arrays import read_safetensors, write_safetensors
from avalanche_clip._files import read_json, write_json
from avalanche_clip.models import weights
from avalanche_clip.models.config_schema import FORMAT, check_model_file
from avalanche_clip.models.hf_loading import plain_hf_config
from avalanche_clip.models.token_embedding import (
    ExpandableTokenEmbedding,
    attach_token_embedding,
    find_token_embedding,
)
from avalanche_clip.models.tokenizers import build_tokenizer, portable_spec

if TYPE_CHECKING:
    from avalanche_clip.models.dual_encoder import DualEncoder

USAGE_FILE = "token_usage.safetensors"
GROWING_FILE = "growing_tokenizer.json"


def save_model(model: DualEncoder, folder: str | Path) -> None:
    """Write a model into a folder, see :meth:`DualEncoder.save`.

    A grown token table is stored with the weights under its usual name; what else
    belongs to it (usage counts, the tokenizer with its snapshots, how new rows are
    drawn) is named by the entry ``growth`` of the configuration file.

    The configuration file, written last, lists the hashes of the tokenizer's files;
    the arrays carry their checksums inside.

    :param model: without adapters.
    :param folder: created if missing.
    :raises ValueError: if adapters are attached, or rows of the token table are
        being trained.
    """
    table = find_token_embedding(model)
    if table is not None and table.active is not None:
        raise ValueError(
            f"{len(table.active)} rows of the token table are being trained; save the "
            "model between experiences, or the run by CheckpointPlugin."
        )
    model.check_plain("save", grown=_key_of(model, table))
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    config["tokenizer"] = model.tokenizer.save(folder)
    weights.save_text_config(model.clip, config, folder)
    facts: dict[str, Any] = {"format": FORMAT, "config": config}
    if table is not None:
        facts["growth"] = _growth_facts(table, config["tokenizer"], folder)
    facts["files"] = _hashes(config, folder)
    facts = json.loads(json.dumps(facts))
    check_model_file(facts, folder / weights.CONFIG_FILE)
    weights.save_weights(model, folder / weights.WEIGHTS_FILE)
    write_json(folder / weights.CONFIG_FILE, facts, indent=2)


def _hashes(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Hash the files beside the weights that have no checksum of their own."""
    names = [(config.get("tokenizer") or {}).get("file")]
    names += [config.get("model_cfg", {}).get("text_cfg", {}).get("hf_model_name")]
    found: list[Path] = []
    for name in names:
        path = folder / name if name else None
        if path is not None and path.is_dir():
            found += (p for p in path.rglob("*") if p.is_file())
        elif path is not None and path.is_file():
            found.append(path)
    return {
        path.relative_to(folder).as_posix(): weights.file_hash(path)
        for path in sorted(found)
    }


def rewrite_model(path: str | Path) -> None:
    """Add checksums to a model that an earlier version saved.

    What the files hold now is taken as right: it cannot be told from here whether
    they are damaged.

    :param path: folder of ``DualEncoder.save``, or file of ``save_weights``.
    :raises ValueError: if it holds no such model.
    """
    path = Path(path).expanduser()
    if path.is_file():
        _rewrite_arrays(path)
        return
    facts = read_json(path / weights.CONFIG_FILE, dict)
    if not isinstance(facts.get("config"), dict):
        raise ValueError(f"{path / weights.CONFIG_FILE} holds no configuration.")
    facts["format"] = FORMAT
    library = facts["config"].get("library")
    if library == "transformers":
        facts["config"]["hf_config"] = plain_hf_config(facts["config"]["hf_config"])
    facts["files"] = _hashes(facts["config"], path)
    facts.setdefault("growth", None)
    check_model_file(facts, path / weights.CONFIG_FILE)
    for name in (weights.WEIGHTS_FILE, USAGE_FILE):
        if (path / name).is_file():
            _rewrite_arrays(path / name)
    tokenizer = path / (facts["config"]["tokenizer"] or {}).get("file", "")
    if tokenizer.name == GROWING_FILE:
        write_json(tokenizer, read_json(tokenizer, dict), checksum=True, indent=None)
        facts["files"] = _hashes(facts["config"], path)
    write_json(path / weights.CONFIG_FILE, facts, indent=2)


def _rewrite_arrays(path: Path) -> None:
    """Write one file again, with a checksum and without names of other machines."""
    tensors, metadata = read_safetensors(path, required=False)
    metadata.pop("format", None)
    if "config" in metadata:
        config = json.loads(metadata["config"])
        config["tokenizer"] = portable_spec(config.get("tokenizer"))
        metadata["config"] = json.dumps(config, sort_keys=True)
    write_safetensors(path, tensors, metadata)


def _key_of(model: DualEncoder, table: ExpandableTokenEmbedding | None) -> str | None:
    """Name of a table's weight in the state dictionary of the wrapped model."""
    for name, module in model.clip.named_modules():
        if module is table:
            return f"{name}.weight"
    return None


def _growth_facts(
    table: ExpandableTokenEmbedding, tokenizer: dict[str, Any], folder: Path
) -> dict[str, Any]:
    write_safetensors(folder / USAGE_FILE, {"usage": table.usage}, {})
    return {
        "base_rows": table.base_rows,
        "rows": table.num_embeddings,
        "init": table.init,
        "std": table.std,
        "seed": table.seed,
        "tokenizer": tokenizer,
    }


def restore_growth(model: DualEncoder, growth: dict[str, Any]) -> None:
    """Give a model of the base size the table and the tokenizer of a saved one.

    The values of the table come with the weights, which are loaded afterwards.

    :param model: just built.
    :param growth: entry of the configuration file, with the ``folder`` it lies in.
    :raises ValueError: if the table began with another number of rows.
    """
    folder = growth["folder"]
    usage, _ = read_safetensors(
        Path(folder, USAGE_FILE), rewrite=weights.REWRITE.format(folder)
    )
    if "usage" not in usage:
        raise ValueError(f"{Path(folder, USAGE_FILE)} holds no usage counts.")
    tokenizer = build_tokenizer(
        growth["tokenizer"], model.context_length, trim=model.is_causal_text
    )
    table = attach_token_embedding(
        model,
        tokenizer=tokenizer,
        init=growth["init"],
        std=growth["std"],
        seed=growth["seed"],
    )
    table.load_growth_state(
        {
            "rows": growth["rows"],
            "base_rows": growth["base_rows"],
            "usage": usage["usage"],
            "active": None,
            "factor": 1.0,
            "tokenizer": None,
        }
    )


__all__ = ["USAGE_FILE", "restore_growth", "rewrite_model", "save_model"]
