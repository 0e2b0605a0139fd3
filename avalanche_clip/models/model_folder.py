"""Folders that hold a whole model: configuration, tokenizer, weights, grown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_clip.models import vocabulary_storage, weights
from avalanche_clip.models.token_embedding import (
    ExpandableTokenEmbedding,
    attach_token_embedding,
    find_token_embedding,
)
from avalanche_clip.models.tokenizers import build_tokenizer

if TYPE_CHECKING:
    from avalanche_clip.models.dual_encoder import DualEncoder

USAGE_FILE = "token_usage.safetensors"


def save_model(model: DualEncoder, folder: str | Path) -> None:
    """Write a model into a folder, see :meth:`DualEncoder.save`.

    A grown token table is stored with the weights under its usual name; what else
    belongs to it (usage counts, the tokenizer with its snapshots, how new rows are
    drawn) is named by the entry ``growth`` of the configuration file.

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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    config["tokenizer"] = model.tokenizer.save(folder)
    weights.save_text_config(model.clip, config, folder)
    facts: dict[str, Any] = {"format": 1, "config": config}
    if table is not None:
        facts["growth"] = _growth_facts(table, config["tokenizer"], folder)
    weights.save_weights(model, folder / weights.WEIGHTS_FILE)
    path = folder / weights.CONFIG_FILE
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _key_of(model: DualEncoder, table: ExpandableTokenEmbedding | None) -> str | None:
    """Name of a table's weight in the state dictionary of the wrapped model."""
    for name, module in model.clip.named_modules():
        if module is table:
            return f"{name}.weight"
    return None


def _growth_facts(
    table: ExpandableTokenEmbedding, tokenizer: dict[str, Any], folder: Path
) -> dict[str, Any]:
    vocabulary_storage.write_usage(table.usage, folder / USAGE_FILE)
    return {
        "base_rows": table.base_rows,
        "rows": table.num_embeddings,
        "init": table.init,
        "std": table.std,
        "seed": table.seed,
        "tokenizer": tokenizer,
    }


def read_growth(folder: Path) -> dict[str, Any] | None:
    """Read what a folder says of a growing token table.

    :param folder: written by :func:`save_model`, or any other.
    :return: for :func:`restore_growth`; None for models without such a table.
    """
    path = folder / weights.CONFIG_FILE
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    growth = facts.get("growth") if isinstance(facts, dict) else None
    if growth is None:
        return None
    spec = growth["tokenizer"]
    if "file" in spec and (folder / spec["file"]).exists():
        spec["file"] = str((folder / spec["file"]).resolve())
    return {**growth, "folder": str(folder)}


def restore_growth(model: DualEncoder, growth: dict[str, Any]) -> None:
    """Give a model of the base size the table and the tokenizer of a saved one.

    The values of the table come with the weights, which are loaded afterwards.

    :param model: just built.
    :param growth: from :func:`read_growth`.
    :raises ValueError: if the table began with another number of rows.
    """
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
            "usage": vocabulary_storage.read_usage(
                Path(growth["folder"], USAGE_FILE), growth["rows"]
            ),
            "active": None,
            "factor": 1.0,
            "tokenizer": None,
        }
    )


__all__ = ["USAGE_FILE", "read_growth", "restore_growth", "save_model"]
