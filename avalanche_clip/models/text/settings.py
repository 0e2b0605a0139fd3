"""What a tokenizer may be asked for, and the names under which one is found.

No file can switch on the running of code that lies beside it: transformers is asked
with settings of this list only.
"""

from __future__ import annotations

import re
from typing import Any

# one of them is in every tokenizer folder of transformers
HF_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
_HF_SETTINGS: dict[str, type] = {
    **dict.fromkeys((*SPECIAL_TOKENS, "revision", "subfolder", "src_lang"), str),
    **dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token"), bool),
    **dict.fromkeys(("do_lower_case", "keep_accents", "legacy", "truncate"), bool),
    **dict.fromkeys(("extra_ids", "model_max_length"), int),
}
TOKENIZER_SETTINGS: dict[str, dict[str, type]] = {
    "open_clip": {
        "clean": str,
        "reduction_mask": str,
        "additional_special_tokens": list,
        "truncate": bool,
    },
    "open_clip_hf": {
        **_HF_SETTINGS,
        **dict.fromkeys(("clean", "language", "tokenizer_mode"), str),
        "strip_sep_token": bool,
    },
    "hf": _HF_SETTINGS,
    "json": {"truncate": bool},
    "growing": {},
}
"""Settings that a tokenizer entry may carry, with the types of their values."""
_CHOICES = {
    "clean": ("canonicalize", "lower", "whitespace"),
    "reduction_mask": ("", "simple", "random", "shuffle", "syntax"),
    "tokenizer_mode": ("", "clips"),
}


def check_tokenizer_settings(kind: str, kwargs: Any, source: str) -> dict[str, Any]:
    """Let through only settings that change how captions are cut.

    :param kind: type of the tokenizer entry.
    :param kwargs: its settings; None counts as none, and so do values None.
    :param source: what holds them, for messages.
    :return: the settings.
    :raises ValueError: naming the first that is refused.
    """
    known = TOKENIZER_SETTINGS[kind]
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"{source} has tokenizer settings {kwargs!r}; give a mapping.")
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    for key, value in kwargs.items():
        if key not in known:
            raise ValueError(
                f"{source} has the tokenizer setting {key!r}, which is refused; a "
                f"tokenizer of the type {kind!r} takes {', '.join(known) or 'none'}."
            )
        wrong = type(value) is not known[key]
        wrong = wrong or (key in _CHOICES and value not in _CHOICES[key])
        if isinstance(value, list):
            wrong = wrong or not all(isinstance(v, str) and v for v in value)
        if wrong:
            allowed = _CHOICES.get(key, (known[key].__name__,))
            raise ValueError(
                f"{source} has the tokenizer setting {key}={value!r}; allowed: "
                f"{', '.join(map(repr, allowed))}."
            )
    return kwargs


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Tell whether a name could be one on the hub, by its form."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def error_words(error: BaseException) -> str:
    """Return the message of an error of another library on one line, not too long."""
    return " ".join(str(error).split())[:400] or type(error).__name__
