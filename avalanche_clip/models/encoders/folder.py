"""Folders that hold a whole model: configuration, tokenizer, weights, grown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.models.encoders import weights
from avalanche_clip.models.encoders.blocks import ATTACHMENTS
from avalanche_clip.models.encoders.config_schema import FORMAT, check_model_file
from avalanche_clip.models.encoders.hf_loading import plain_hf_config
from avalanche_clip.models.encoders.towers import plain_name
from avalanche_clip.models.encoders.weights import Storable
from avalanche_clip.models.text import vocabulary_storage
from avalanche_clip.models.text.build import build_tokenizer
from avalanche_clip.models.text.token_table import (
    ExpandableTokenEmbedding,
    attach_token_embedding,
    find_token_embedding,
)

USAGE_FILE = "token_usage.safetensors"
DRAWING = ("init", "std", "seed")  # how new rows of a token table are drawn


def save_model(model: Storable, folder: str | Path) -> None:
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
    table, key = table_of(model.clip)
    if table is not None and table.active is not None:
        raise ValueError(
            f"{len(table.active)} rows of the token table are being trained; save the "
            "model between experiences, or the run by CheckpointPlugin."
        )
    model.check_plain("save", grown=key)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ATTACHMENTS:  # of a model that was saved here before
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
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
    write_json(folder / weights.CONFIG_FILE, facts)


def _hashes(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Hash the files beside the weights that have no checksum of their own."""
    files = weights.files_of(config, folder, folder / weights.CONFIG_FILE)
    return {name: weights.file_hash(path) for name, path in files.items()}


def renew_model_file(folder: Path) -> None:
    """Bring the configuration file of an earlier version into the present form.

    :param folder: whose other files have checksums already.
    :raises ValueError: if the file says what it may not.
    """
    path = folder / weights.CONFIG_FILE
    facts = read_json(path, dict)
    config = facts.get("config")
    if isinstance(config, dict) and isinstance(config.get("hf_config"), dict):
        config["hf_config"] = plain_hf_config(config["hf_config"])
    if facts.get("format") == 1:
        facts["format"] = FORMAT
    facts.setdefault("files", {})
    check_model_file(facts, path)
    facts["files"] = _hashes(config or {}, folder)
    write_json(path, facts)


def table_of(clip: Any) -> tuple[ExpandableTokenEmbedding | None, str | None]:
    """Return the growing token table of a wrapped model and the name of its weight."""
    table = find_token_embedding(clip)
    names = (name for name, m in clip.named_modules() if m is table)
    return table, next((plain_name(f"{name}.weight") for name in names), None)


def _growth_facts(
    table: ExpandableTokenEmbedding, tokenizer: dict[str, Any], folder: Path
) -> dict[str, Any]:
    vocabulary_storage.write_usage(table.usage, folder / USAGE_FILE)
    return {
        "base_rows": table.base_rows,
        "rows": table.num_embeddings,
        **{name: getattr(table, name) for name in DRAWING},
        "tokenizer": tokenizer,
    }


def restore_growth(
    model: Any, growth: dict[str, Any], context_length: int, trim: bool
) -> None:
    """Give a model of the base size the table and the tokenizer of a saved one.

    The values of the table come with the weights, which are loaded afterwards.

    :param model: dual encoder, just built.
    :param growth: entry of the configuration file, with the ``folder`` it lies in.
    :param context_length: longest row of the text tower.
    :param trim: True for causal text towers.
    :raises ValueError: if the table began with another number of rows.
    """
    usage = vocabulary_storage.read_usage(
        Path(growth["folder"], USAGE_FILE), growth["rows"]
    )
    tokenizer = build_tokenizer(growth["tokenizer"], context_length, trim=trim)
    drawing = {name: growth[name] for name in DRAWING}
    table = attach_token_embedding(model, tokenizer=tokenizer, **drawing)
    rest = {"usage": usage, "active": None, "factor": 1.0, "tokenizer": None}
    table.load_growth_state({**growth, **rest})
