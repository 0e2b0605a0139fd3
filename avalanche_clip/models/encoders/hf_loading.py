"""The one place that reads configurations and tokenizers with transformers.

No file can switch on the running of code that lies beside it: what transformers is
asked with comes from a list of harmless settings, ``trust_remote_code`` is always
False, and the classes are transformers' own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import inside, read_json
from avalanche_clip.models.text.settings import error_words, is_hub_id

HF_MODEL_TYPES = ("clip", "siglip")
CONFIG_NAME = "config.json"
_WEIGHTS = (
    ["model.safetensors", "model-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model-*.bin"],
)

_TOWER_KEYS = frozenset(
    "model_type hidden_size intermediate_size projection_dim num_hidden_layers"
    " num_attention_heads hidden_act layer_norm_eps attention_dropout"
    " initializer_range initializer_factor".split()
)
HF_KEYS: dict[str, frozenset[str]] = {
    "": frozenset(
        "model_type text_config vision_config projection_dim logit_scale_init_value"
        " initializer_factor initializer_range".split()
    ),
    "text_config": _TOWER_KEYS.union(
        "vocab_size max_position_embeddings projection_size pad_token_id"
        " bos_token_id eos_token_id".split()
    ),
    "vision_config": _TOWER_KEYS.union(
        "num_channels image_size patch_size vision_use_head".split()
    ),
}
"""All settings of a transformers configuration that a built model depends on."""


# ------------------------------------------------------------ configurations
def plain_hf_config(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in a CLIP or SigLIP configuration and leave out what nothing reads.

    :param values: content of a ``config.json``.
    :return: only the keys of :data:`HF_KEYS`, defaults filled in.
    :raises ValueError: for another model type, quantised weights, or values that
        transformers refuses.
    """
    kind = values.get("model_type")
    if kind not in HF_MODEL_TYPES:
        raise ValueError(
            f"transformers model type {kind!r} is not supported; use one of"
            f" {', '.join(HF_MODEL_TYPES)}, or an open_clip model."
        )
    if values.get("quantization_config"):
        raise ValueError(
            "The configuration asks for quantised weights (quantization_config), which "
            "cannot be loaded; give the model's plain weights."
        )
    filled = hf_config_object(values).to_dict()
    plain = {k: v for k, v in filled.items() if k in HF_KEYS[""]}
    for part in ("text_config", "vision_config"):
        inner = plain.get(part) or {}
        plain[part] = {k: v for k, v in inner.items() if k in HF_KEYS[part]}
    return json.loads(json.dumps(plain))


def hf_config_object(values: dict[str, Any]) -> Any:
    """Make transformers' own configuration object.

    :raises ValueError: with transformers' reason.
    """
    import transformers

    kinds = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}
    values = {
        key: value
        for key, value in json.loads(json.dumps(values)).items()
        # names of other code, or of kernels to download
        if key not in ("auto_map", "quantization_config")
        and not key.lstrip("_").startswith(("attn_impl", "experts_impl"))
    }
    try:
        return kinds[values["model_type"]].from_dict(values)
    except Exception as error:  # of transformers and of its checking library
        raise ValueError(
            f"transformers refuses the configuration: {error_words(error)}."
        ) from error


def hf_folder(source: str, cache: str | None, *, weights: bool = False) -> Path:
    """Return the folder of a transformers model, downloaded if it is on the hub.

    Configurations and vocabularies are fetched; code is not.

    :param source: folder, or id on the hub.
    :param cache: download folder.
    :param weights: whether they are fetched too, where possible as safetensors. Those
        of other libraries in the same repository are not.
    :raises ValueError: naming the source and the cause.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        for names in _WEIGHTS if weights else ([],):
            wanted = ["*.json", "*.txt", "*.model", *names]
            try:
                found = snapshot_download(
                    source, cache_dir=cache, allow_patterns=wanted
                )
            except Exception as error:  # the client raises types of several libraries
                raise ValueError(
                    f"transformers finds no model configuration at {source!r} "
                    f"({error_words(error)}); give an existing folder or a reachable "
                    "hub id."
                ) from error
            folder = Path(found)
            if any(path for name in names for path in folder.glob(name)):
                break
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{source} is no transformers folder: it has no config.json.")
    return folder


def check_text_tower(name: str) -> None:
    """Make sure that a text tower is made of transformers' own classes.

    open_clip asks transformers for it by name, which would ask on standard input
    whether to run code that lies beside the configuration.

    :param name: folder or id on the hub (``hf_model_name``).
    :raises ValueError: naming it and the cause.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            stored = read_json(folder / CONFIG_NAME, dict)
            if not isinstance(stored.get("model_type"), str):
                raise ValueError("its config.json names no model_type")
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_MAPPING:
            raise ValueError("transformers itself has no model of this type")
        if config._attn_implementation not in (None, "eager", "sdpa"):
            # others are kernels, downloaded when the model is built
            raise ValueError(
                f"it asks for attn_implementation={config._attn_implementation!r}"
            )
    except Exception as error:  # of transformers, its checks and the hub client
        raise ValueError(
            f"The text tower {name!r} cannot be built ({error_words(error)}). Code "
            "beside a configuration is never run; give a local folder of a model that "
            "transformers itself supports."
        ) from error


def anchor(name: Any, folder: Path, source: str | Path, *, hub: bool) -> str:
    """Make a name that a file holds into a path in its folder, or a hub id.

    :param name: file or folder, relative to ``folder``.
    :param hub: whether ids on the hub are meaningful here.
    :raises ValueError: for names that leave the folder, and other absent ones.
    """
    if not isinstance(name, str):
        raise ValueError(f"{source} names the file {name!r}; a file name is needed.")
    if hub and is_hub_id(name) and not (folder / name).exists():
        return name
    path = inside(folder, name, source)
    if not path.exists():
        raise ValueError(
            f"{source} names {name!r}, but {folder} holds no such file; put it there."
        )
    return str(path)
