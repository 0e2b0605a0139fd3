"""CLIP's architecture in the words of open_clip and of transformers, both ways.

Only what both libraries compute alike is translated: transformers of pre-norm blocks,
images read at the class token, texts at their end, linear projections without bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.models.images.resizing import as_pair

State = dict[str, Tensor]

# open_clip's name -> that of transformers; {i} is the number of a block
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TOWERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.*": "vision_model.pre_layrnorm.*",
    "visual.ln_post.*": "vision_model.post_layernorm.*",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.*": "text_model.final_layer_norm.*",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_STACKS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
_PARTS = ("q_proj", "k_proj", "v_proj")
_TYPES = ("weight", "bias")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# open_clip's settings that both have, or that change nothing outside of training
_SHARED = {
    "model_cfg": "embed_dim vision_cfg text_cfg quick_gelu custom_text output_dict"
    " init_logit_scale nonscalar_logit_scale",
    "vision_cfg": "layers width head_width mlp_ratio patch_size image_size"
    " patch_dropout norm_kwargs",
    "text_cfg": "context_length vocab_size width heads layers mlp_ratio pad_id eos_id"
    " pool_type hf_tokenizer_name tokenizer_kwargs tokenizer_mode norm_kwargs"
    " hf_model_pretrained",
}


def _names(layers: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the names of all tensors that only change their name."""
    for ours, theirs in _TOWERS.items():
        for kind in _TYPES if ours.endswith("*") else ("",):
            yield ours.replace("*", kind), theirs.replace("*", kind)
    for ours, theirs in _STACKS.items():
        for number in range(layers[ours]):
            for first, second in _BLOCK.items():
                for kind in _TYPES:
                    yield (
                        f"{ours}.{number}.{first}.{kind}",
                        f"{theirs}.{number}.{second}.{kind}",
                    )


def _attentions(layers: dict[str, int]) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of fused queries, keys and values, and of the three parts."""
    for ours, theirs in _STACKS.items():
        for number in range(layers[ours]):
            for kind in _TYPES:
                parts = [f"{theirs}.{number}.self_attn.{p}.{kind}" for p in _PARTS]
                yield f"{ours}.{number}.attn.in_proj_{kind}", parts


# ----------------------------------------------------------- open_clip's to theirs
def to_transformers(model_cfg: dict[str, Any], state: State) -> tuple[Any, State]:
    """Translate an open_clip model into transformers' ``CLIPModel``.

    :param model_cfg: of open_clip.
    :param state: its tensors, with plain names.
    :return: configuration and tensors of transformers.
    :raises ValueError: naming what ``CLIPModel`` does not have.
    """
    _check_shared(model_cfg)
    vision, text = _filled(model_cfg)
    state = {k.removeprefix("text."): v for k, v in state.items()}
    layers = dict(zip(_STACKS, (vision["layers"], text["layers"]), strict=True))
    found = {theirs: state[ours] for ours, theirs in _names(layers)}
    for ours, theirs in _PROJECTIONS.items():
        found[theirs] = state[ours].T
    for ours, parts in _attentions(layers):
        found |= zip(parts, state[ours].chunk(3), strict=True)
    found["logit_scale"] = found["logit_scale"].reshape(())
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    config = {
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "vision_config": {
            **_sizes(vision, vision["width"] // vision["head_width"], activation),
            "image_size": as_pair(vision["image_size"])[0],
            "patch_size": as_pair(vision["patch_size"])[0],
        },
        "text_config": {
            **_sizes(text, text["heads"], activation),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
        },
    }
    return config, found


def _sizes(tower: dict[str, Any], heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": (tower["norm_kwargs"] or {}).get("eps", 1e-5),
    }


def _filled(model_cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of both towers, open_clip's defaults filled in."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    towers = (
        (CLIPVisionCfg, model_cfg["vision_cfg"]),
        (CLIPTextCfg, model_cfg["text_cfg"]),
    )
    vision, text = ({f.name: f.default for f in fields(c)} | own for c, own in towers)
    return vision, text


def _check_shared(model_cfg: dict[str, Any]) -> None:
    vision, text = _filled(model_cfg)
    plain, words = _filled({**model_cfg, "vision_cfg": {}, "text_cfg": {}})
    parts = {
        "model_cfg": (model_cfg, {"init_logit_bias": None, "multimodal_cfg": None}),
        "vision_cfg": (vision, plain),
        "text_cfg": (text, words),
    }
    for part, (values, defaults) in parts.items():
        for key, value in values.items():
            if key not in _SHARED[part].split() and value != defaults.get(key):
                raise ValueError(f"its CLIPModel has no {part}[{key!r}]={value!r}")
        if (values.get("norm_kwargs") or {}).keys() - {"eps"}:
            raise ValueError(f"its norms have no {values['norm_kwargs']}")
    if not isinstance(vision["layers"], int):
        raise ValueError("its CLIPModel has no convolutional image tower")
    for key in ("image_size", "patch_size"):
        if len(set(as_pair(vision[key]))) > 1:
            raise ValueError(f"its CLIPModel has no oblong {key}={vision[key]}")
    if text["pool_type"] not in ("argmax", "eos"):
        raise ValueError(f"its CLIPModel has no pool_type={text['pool_type']!r}")


# ----------------------------------------------------------- theirs to open_clip's
def to_open_clip(hf_config: dict[str, Any], state: State) -> tuple[Any, State]:
    """Translate transformers' ``CLIPModel`` into an open_clip model.

    :param hf_config: of transformers.
    :param state: its tensors, with plain names.
    :return: model configuration and tensors of open_clip.
    :raises ValueError: naming what open_clip's model does not have.
    """
    if hf_config["model_type"] != "clip":
        raise ValueError(
            f"its {hf_config['model_type']} has another layout than transformers'"
        )
    vision, text = hf_config["vision_config"], hf_config["text_config"]
    activations = {vision["hidden_act"], text["hidden_act"]}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ValueError(f"both its towers have quick_gelu or gelu, not {activations}")
    layers = dict(
        zip(_STACKS, (c["num_hidden_layers"] for c in (vision, text)), strict=True)
    )
    found = {ours: state[theirs] for ours, theirs in _names(layers)}
    for ours, theirs in _PROJECTIONS.items():
        found[ours] = state[theirs].T
    for ours, parts in _attentions(layers):
        found[ours] = torch.cat([state[part] for part in parts])
    config = {
        "embed_dim": hf_config["projection_dim"],
        "quick_gelu": _ACTIVATIONS[activations.pop()],
        "vision_cfg": {
            **_widths(vision),
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            **_widths(text),
            "heads": text["num_attention_heads"],
            "vocab_size": text["vocab_size"],
            "context_length": text["max_position_embeddings"],
        },
    }
    return config, found


def _widths(tower: dict[str, Any]) -> dict[str, Any]:
    return {
        "layers": tower["num_hidden_layers"],
        "width": tower["hidden_size"],
        "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
        "norm_kwargs": {"eps": tower["layer_norm_eps"]},
    }
