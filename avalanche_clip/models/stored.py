"""Models that a run has left: its last one, and those of checkpoints."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_size
from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.common.plain import as_stored
from avalanche_clip.common.state_files import (
    CheckpointError,
    checkpoints,
    read_state,
    require_finite,
)
from avalanche_clip.models.encoders import factory
from avalanche_clip.models.encoders.blocks import ATTACHMENTS
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.positions import resize_dual_encoder
from avalanche_clip.models.encoders.presets import PRESET_WEIGHTS, PRESETS
from avalanche_clip.models.encoders.weights import CONFIG_FILE
from avalanche_clip.models.moe.adapters import attach_moe_adapters
from avalanche_clip.models.peft import storage
from avalanche_clip.models.peft.adapter import attach_adapters
from avalanche_clip.models.peft.attached import attached
from avalanche_clip.models.peft.language import attach_language_adapters
from avalanche_clip.models.peft.lora import attach_lora
from avalanche_clip.models.peft.prompt import attach_prompts
from avalanche_clip.models.text.growing import GrowingTokenizer
from avalanche_clip.models.text.token_table import (
    attach_token_embedding,
    find_token_embedding,
)
from avalanche_clip.models.text.vocabulary_storage import naming

logger = logging.getLogger(__name__)

BEFORE = "before"
MODEL = "model"
"""Folder of a finished run that holds its model."""
_RUN_FILES = ("run_state.json", "results.json", "checkpoints")


def create_dual_encoder(
    name: str | Path | Mapping[str, Any],
    pretrained: str | Path | None = None,
    *,
    step: int | str | None = None,
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    cache_dir: str | Path | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> DualEncoder:
    """Create a dual encoder with its tokenizer and preprocessing.

    Preprocessing and tokenizer come with the weights: what lies beside or inside them
    counts first, then what is known of the name (and tag), then the default; a name
    without tag takes what all its tags agree on. ``preprocessing_source`` of the
    model says which it was.

    :param name: what to build:

        - an open_clip model name (``"ViT-B-32"``);
        - ``"tiny-emoji"`` or ``"tiny-emoji-vit"``;
        - ``"hf:<folder or hub id>"``: a transformers CLIP or SigLIP model
          with its weights; ``"hf-hub:<id>"``: an open_clip hub model;
        - a folder written by ``DualEncoder.save``, by open_clip or by
          transformers, with its weights (open_clip's, if it holds both);
        - the folder of a run: its last model, or that of a ``step``;
        - a configuration dictionary, such as ``DualEncoder.config``.
    :param pretrained: weights: a tag of the model (``"openai"``, and
        ``"emoji-2010"`` and ``"icons"`` of the tiny presets), a local file, or a
        local folder. None leaves the weights random, except where ``name`` already
        says where they are.
    :param step: index of a step of a run that keeps its model, from 0, or
        ``"before"``: the model after that step, see ``keep_steps`` of
        :func:`run_stream`. Branches and a grown vocabulary come along; what a plugin
        itself holds, such as a selector, does not.
    :param image_size: of pictures, if not that of the weights: positions are
        interpolated, see :func:`resize_dual_encoder`.
    :param context_length: of texts, in tokens; likewise.
    :param cache_dir: folder for downloads.
    :param precision: storage type of frozen weights, ``"fp32"``, ``"fp16"``
        or ``"bf16"``; with a 16-bit type the model comes frozen.
    :param device: where the model is put.
    :param verify: compare the checksum of files that have one; False skips the
        bytes of large tensors.
    :return: the model, in train mode.
    :raises ValueError: for unknown names and tags, for weights that do
        not belong to the architecture (QuickGELU against GELU included), for
        positions that cannot be resized, and for damaged files. Code in files is
        never run.
    :raises CheckpointError: a ValueError, if the model of a step cannot be built.
    :raises FileNotFoundError: if package data are missing.

    Random weights come from torch's global CPU generator.
    """
    if image_size is not None or context_length is not None:
        whole = create_dual_encoder(
            name,
            pretrained,
            step=step,
            cache_dir=cache_dir,
            precision=precision,
            device=device,
            verify=verify,
        )
        return resize_dual_encoder(
            whole, image_size=image_size, context_length=context_length
        )
    run = Path(name) if isinstance(name, (str, Path)) and str(name) else None
    run = None if run is None else run.expanduser()
    if run is None or not _is_run(run):
        if step is not None:
            raise ValueError(
                f"step={step!r} is that of a run, but {name!r} is no folder of one."
            )
        options: Any = {
            "cache_dir": cache_dir,
            "precision": precision,
            "device": device,
        }
        model = factory.build_dual_encoder(name, pretrained, verify=verify, **options)
        if run is not None and pretrained is None and (run / CONFIG_FILE).is_file():
            _read_attached(model, run, verify)
        return model
    if pretrained is not None:
        raise ValueError(
            f"{run} is the folder of a run, which has weights; leave pretrained="
            f"{str(pretrained)!r} out."
        )
    if step is None:
        if not (run / MODEL).is_dir():
            raise ValueError(
                f"{run} has no {MODEL}/, which a run writes when it is finished; give "
                f"step, one of {list(kept_steps(run))}."
            )
        found = create_dual_encoder(run / MODEL, verify=verify)
    else:
        found = load_kept(kept_step(run, step), cache_dir)
    if precision != "fp32":
        found.precision = precision
        found.freeze()
    return found.to(device).train()


def _is_run(folder: Path) -> bool:
    known = any((folder / name).exists() for name in _RUN_FILES)
    return known and not (folder / CONFIG_FILE).exists()


# ---------------------------------------------------------------- finished runs
def save_whole(model: DualEncoder, folder: str | Path) -> None:
    """Write a model with what is attached to it, replacing the folder at once.

    :param model: rows of a token table that are being trained are written back in
        what is stored, and the model stays as it is.
    :param folder: read by :func:`create_dual_encoder`.
    :raises ValueError: for what is beside the plain architecture and no branch of this
        package, and for tokenizers without ``save(folder)``.
    """
    if not hasattr(model.tokenizer, "save"):
        raise ValueError(
            f"the model's tokenizer, a {type(model.tokenizer).__name__}, has no"
            " save(folder)"
        )
    folder = Path(folder)
    sets, table = attached(model), find_token_embedding(model)
    plain = model
    if sets or (table is not None and table.active is not None):
        plain = copy.deepcopy(model)
        for one in reversed(attached(plain)):
            one.detach()
        if (table := find_token_embedding(plain)) is not None:
            table.settle()
    fresh, old = (folder.with_name(f"{folder.name}.{end}") for end in ("tmp", "old"))
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    plain.save(fresh)
    for one in sets:
        state = one.adapter_state_dict()
        state["facts"] |= {k: v for k, v in one.growth_state().items() if k == "in_use"}
        storage.write(state, fresh / f"{one.name}.safetensors", one.name)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_attached(model: DualEncoder, folder: Path, verify: bool) -> None:
    """Attach what :func:`save_whole` wrote beside a model."""
    for name in ATTACHMENTS:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            # The rules of each kind are compared when it is attached.
            state = storage.read(path, name, name, {}, verify=verify)
            with naming(path, f"{name} of this model"):
                attach_again(model, name, state["facts"])
                parts = getattr(model, name)
                parts.load_growth_state(state["facts"])
                parts.load_adapter_state_dict(state, check_base=False)


def attach_again(model: DualEncoder, name: str, growth: Mapping[str, Any]) -> None:
    """Attach what a model had, as it was made; its weights are loaded afterwards.

    :param model: without anything under that name.
    :param name: one of :data:`ATTACHMENTS`.
    :param growth: what ``growth_state()`` of the set returned.
    :raises ValueError: if it does not fit the model.
    """
    if name == "moe_adapters":
        attach_moe_adapters(model, towers=list(growth["towers"]), **growth["options"])
        return
    config = dict(growth["config"])
    if name in ("prompts", "prefixes"):
        attach_prompts(model, name=name, **config)
    elif name == "lora":
        attach_lora(model, **config)
    elif name == "adapters":
        attach_adapters(model, **config)
    else:
        attach_language_adapters(model, **config)


# ------------------------------------------------------------------ checkpoints
def kept_steps(folder: str | Path, *, skip_damaged: bool = False) -> dict[str, Path]:
    """Find the models that a run has kept between its steps.

    :param folder: of a run, or with its checkpoints.
    :param skip_damaged: leave out what cannot be read, with a warning.
    :return: ``"before"``, ``"0"``, ``"1"``, ... as in ``results.json`` -> the newest
        checkpoint after that step; empty for any other folder.
    :raises CheckpointError: if a checkpoint is damaged, or all lie inside a step.
    """
    folder = Path(folder).expanduser()
    known = checkpoints(folder / "checkpoints") or checkpoints(folder)
    found: dict[int, Path] = {}
    for path in known:
        try:
            state = read_state(path)
            require_finite(state, path)
        except CheckpointError as error:
            if not skip_damaged:
                raise
            logger.warning("%s", error)
            continue
        # A strategy may have been trained before the run.
        number = state["experience"] if state["run"] is None else state["run"]["next"]
        if not state["inside"]:
            found[int(number)] = path
    if known and not found and not skip_damaged:
        raise CheckpointError(
            f"{folder} holds no checkpoint between steps, only inside one; go on with "
            "the run (resume=True) until the step has ended."
        )
    steps = sorted(found.items())
    return {str(step - 1) if step else "before": path for step, path in steps}


def kept_step(folder: str | Path, step: Any = None) -> Path:
    """Find the checkpoint of one step of a run.

    :param folder: of the run.
    :param step: index of the step, ``"before"``, or None for the last one kept.
    :raises ValueError: if its model is not kept, naming those that are.
    """
    kept = kept_steps(folder)
    if step is None and kept:
        return list(kept.values())[-1]
    name = step if step in (None, BEFORE) else str(as_size(step, "step", least=0))
    if name not in kept:
        have = f"there are {', '.join(kept)}" if kept else "there is none"
        raise ValueError(
            f"{folder} does not keep the model of step {step!r}; {have} (steps count "
            "from 0; run_stream(keep_steps=...) says how many are kept)."
        )
    return kept[name]


def load_kept(path: str | Path, cache_dir: str | Path | None = None) -> DualEncoder:
    """Build the model of a checkpoint, with what was attached to it.

    :param path: see :func:`kept_steps`.
    :param cache_dir: of downloads; default that of the run.
    :return: on the CPU.
    :raises CheckpointError: if it is damaged, of another model than a
        :class:`DualEncoder`, or needs what only its method can build.
    """
    path = Path(path)
    state = read_state(path)
    require_finite(state, path)
    settings = state["identity"]["settings"]
    config = settings["model"]
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} holds a {config}, which it does not tell how to build; build the "
            "strategy, use load_state, and save its model (model.save)."
        )
    try:
        model, frozen = _with_base(path, state, cache_dir)
        # what is trained is stored in 32 bits
        if model is None or model.precision != "fp32":
            model = factory.build_dual_encoder(config)
        take_weights(model, state, frozen)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model.pretrained = settings["pretrained"]
    load_trainable(model, set(state["trainable"]))
    if (table := find_token_embedding(model)) is not None:
        table.settle()
    return model


def take_weights(
    model: nn.Module,
    state: Mapping[str, Any],
    frozen: Mapping[str, Tensor] | None = None,
) -> None:
    """Give a model the growth, the branches and the weights of a checkpoint.

    What the model has beside these stays as it is.

    :param model: of the same architecture.
    :param state: of the checkpoint.
    :param frozen: weights that it knows by their hash; default those of the model.
    :raises ValueError: if it does not fit.
    """
    grown = set(state["growth"])
    for name, stored in state["growth"].items():
        module: Any = dict(model.named_modules()).get(name)
        if not hasattr(type(module), "load_growth_state"):
            _attach_stored(model, name, stored)
            module = dict(model.named_modules()).get(name)
        module.load_growth_state(stored)
    frozen = base_weights(model, state["base"]) if frozen is None else frozen
    weights = {**state["model"], **frozen}
    own: Any = [s for s in attached(model) if s.name not in grown]
    parts = tuple(f"{n}." for s in own for n in (s.name, *dict(s.named_branches())))
    rest = {k: v for k, v in model.state_dict().items() if k.startswith(parts)}
    _load(model, {**rest, **weights} if parts else weights)


def _attach_stored(model: Any, name: str, stored: Mapping[str, Any]) -> None:
    if isinstance(model, DualEncoder) and name in ATTACHMENTS:
        attach_again(model, name, stored)
    elif isinstance(model, DualEncoder) and "base_rows" in stored:
        spec = stored["tokenizer"]
        grown = None if spec is None else GrowingTokenizer.from_state_dict(spec)
        attach_token_embedding(model, name=name, tokenizer=grown)
    else:
        raise ValueError(
            f"The checkpoint holds a growing module {name!r}, which it does not tell "
            "how to build; build the same model."
        )


def load_weights(
    model: nn.Module, weights: dict[str, Any], trainable: set[str]
) -> None:
    """Load weights into a model, and let the named parameters be trained.

    :raises ValueError: if they are those of another model.
    """
    _load(model, weights)
    load_trainable(model, trainable)


def _load(model: nn.Module, weights: dict[str, Any]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            "The checkpoint holds another model than the strategy; build it with the "
            "same model (a module that grows needs growth_state and "
            f"load_growth_state). {error}"
        ) from error


def load_trainable(model: nn.Module, trainable: set[str]) -> None:
    """Let the named parameters be trained, and no others."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in trainable):
            parameter.requires_grad_(name in trainable)


def base_weights(model: nn.Module, base: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a model that a stored run knows by their hash.

    :param model: of the run that goes on.
    :param base: from :meth:`FrozenBase.unchanged`.
    :raises ValueError: if the model has others.
    """
    ours = dict(model.named_parameters())
    missing = [name for name in base["names"] if name not in ours]
    if missing:
        raise ValueError(
            f"The checkpoint needs frozen weights {missing[:3]} that the model does "
            "not have; build the same model."
        )
    found = {name: ours[name].detach() for name in base["names"]}
    if FingerprintCache()(found.items()) != base["hash"]:
        raise ValueError(
            "The frozen weights of the model are not those of the stored run, which "
            "holds their hash only; build the model with the same pretrained weights."
        )
    return found


def _with_base(
    path: Path, state: Mapping[str, Any], cache_dir: str | Path | None
) -> tuple[DualEncoder | None, dict[str, Tensor]]:
    """Find the frozen weights that a checkpoint knows by their hash.

    Those that no name gives are those of the model that a finished run has left.

    :return: the model of their name, if it is that of the checkpoint; the weights.
    :raises ValueError: if neither has them.
    """
    base, settings = state["base"], state["identity"]["settings"]
    if not base["names"]:
        return None, {}
    try:
        named = _named(settings, base.get("source"), cache_dir)
        frozen = base_weights(named, base)
        same = as_stored(named.config) == settings["model"]
        return (named if same else None), frozen
    except (ValueError, OSError, RuntimeError) as error:
        last = path.parent.parent / MODEL
        if not last.is_dir():
            raise ValueError(f"{error} A finished run has them in {last}.") from error
    return None, base_weights(create_dual_encoder(last), base)


def _named(
    settings: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    cache_dir: str | Path | None,
) -> DualEncoder:
    """Build a model as that of a run was loaded."""
    config, pretrained = settings["model"], settings["pretrained"]
    if source is not None:
        return factory.build_dual_encoder(
            config if source["name"] is None else source["name"],
            source["pretrained"],
            cache_dir=cache_dir or source["cache_dir"],
            precision=source["precision"],
        )
    if pretrained in PRESET_WEIGHTS:  # which a configuration alone does not name
        known = (factory.build_dual_encoder(name, pretrained) for name in PRESETS)
        for model in known:
            if as_stored(model.config) == config:
                return model
    return factory.build_dual_encoder(config, pretrained)
