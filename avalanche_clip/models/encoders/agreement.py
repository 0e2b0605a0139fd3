"""Do these weights belong to this architecture?

Shapes alone cannot tell: QuickGELU and GELU models have the same tensors and
give quietly wrong features when exchanged (open_clip issue 771).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from avalanche_clip.models.encoders.hf_loading import plain_hf_config

# settings that change neither tensors nor what is computed from them
_IRRELEVANT = frozenset(
    """
    custom_text init_logit_bias init_logit_scale timm_model_pretrained
    hf_model_pretrained hf_model_name hf_tokenizer_name tokenizer_kwargs
    tokenizer_mode output_tokens patch_dropout timm_drop timm_drop_path
    _name_or_path architectures dtype torch_dtype transformers_version
    logit_scale_init_value initializer_factor initializer_range attention_dropout
    bos_token_id eos_token_id pad_token_id
    """.split()
)
"""Texts are pooled where the tokenizer says, so ids of tokens do not count."""


def check_same_architecture(
    expected: dict[str, Any], stored: dict[str, Any], source: str
) -> None:
    """Compare the configuration asked for with that of the weights.

    :param expected: full configuration of the model being built.
    :param stored: full configuration found with the weights.
    :param source: file or folder of the weights, for the message.
    :raises ValueError: naming the settings that differ.
    """
    if expected["library"] != stored["library"]:
        raise ValueError(
            f"{source} holds weights for {stored['library']}, the model is built with"
            f" {expected['library']}; create the model from {source} itself."
        )
    ours, theirs = _flat(expected), _flat(stored)
    differing = [
        f"{key}: model {ours.get(key)!r}, weights {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differing:
        raise ValueError(
            f"The weights in {source} were made with another configuration"
            f" ({'; '.join(differing[:5])}); use the model name they belong to, or"
            " create the model from the folder of the weights."
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the computation, defaults filled in."""
    if config["library"] == "open_clip":
        values = _with_open_clip_defaults(config["model_cfg"])
    else:
        values = plain_hf_config(config["hf_config"])
    parts = {"": values, **{k: v for k, v in values.items() if isinstance(v, dict)}}
    return {
        f"{part}.{key}".lstrip("."): list(value) if isinstance(value, tuple) else value
        for part, settings in parts.items()
        for key, value in settings.items()
        if key not in {*_IRRELEVANT, *parts}
    }


def _with_open_clip_defaults(model_cfg: dict[str, Any]) -> dict[str, Any]:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return {
        "quick_gelu": False,
        **model_cfg,
        "vision_cfg": asdict(CLIPVisionCfg(**model_cfg["vision_cfg"])),
        "text_cfg": asdict(CLIPTextCfg(**model_cfg["text_cfg"])),
    }


def check_tag_activation(
    name: str, config: dict[str, Any], source: str, theirs: bool | None
) -> None:
    """Make sure that activation functions of weights and model agree.

    :param name: model name, for the advice.
    :param config: full configuration of the model being built.
    :param source: tag or file of the weights.
    :param theirs: whether they are of a QuickGELU model, None if that is unknown.
    :raises ValueError: if one side is QuickGELU and the other is not.
    """
    ours = bool(config.get("model_cfg", {}).get("quick_gelu", False))
    # open_clip 3.3 leaves it out where it was never asked (roberta-ViT-B-32)
    if theirs is None or ours == bool(theirs):
        return
    has, needs = ("QuickGELU", "GELU") if ours else ("GELU", "QuickGELU")
    advice = repr(name.removesuffix("-quickgelu") if ours else f"{name}-quickgelu")
    raise ValueError(
        f"The weights {source!r} were trained with {needs}, the model {name!r} uses"
        f" {has}; use the model name {advice}, or a configuration with"
        f" quick_gelu={bool(theirs)}."
    )
