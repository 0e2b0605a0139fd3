"""What a tokenizer may be asked for, and the names under which one is found.

No file can switch on the running of code that lies beside it: transformers is asked
with settings of this list only.
"""

from __future__ import annotations

import re
from typing import Any

# one of them is in every tokenizer folder of transformers
HF_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_TEXT = (str,)
_SWITCH = (bool,)
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_HF_SETTINGS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(SPECIAL_TOKENS, _TEXT),
    "add_prefix_space": _SWITCH,
    "add_bos_token": _SWITCH,
    "add_eos_token": _SWITCH,
    "do_lower_case": _SWITCH,
    "keep_accents": _SWITCH,
    "legacy": _SWITCH,
    "extra_ids": (int,),
    "revision": _TEXT,
    "subfolder": _TEXT,
    "src_lang": _TEXT,
    "truncate": _SWITCH,
}
_CLEANERS = ("canonicalize", "lower", "whitespace")
_MASKS = ("simple", "random", "shuffle", "syntax")
TOKENIZER_SETTINGS: dict[str, dict[str, tuple[type, ...]]] = {
    "open_clip": {
        "clean": _TEXT,
        "reduction_mask": _TEXT,
        "additional_special_tokens": (list,),
        "truncate": _SWITCH,
    },
    "open_clip_hf": {
        **_HF_SETTINGS,
        "clean": _TEXT,
        "strip_sep_token": _SWITCH,
        "language": _TEXT,
        "tokenizer_mode": _TEXT,
    },
    "hf": _HF_SETTINGS,
    "json": {"truncate": _SWITCH},
    "growing": {},
}
"""Settings that a tokenizer entry may carry, with the types of their values."""
_CHOICES = {
    "clean": _CLEANERS,
    "reduction_mask": ("", *_MASKS),
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
        wrong = type(value) not in known[key]
        wrong = wrong or (key in _CHOICES and value not in _CHOICES[key])
        if isinstance(value, list):
            wrong = wrong or not all(isinstance(v, str) and v for v in value)
        if wrong:
            allowed = _CHOICES.get(key, [t.__name__ for t in known[key]])
            raise ValueError(
                f"{source} has the tokenizer setting {key}={value!r}; allowed: "
                f"{', '.join(map(repr, allowed))}."
            )
    return kwargs


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Tell whether a name could be one on the hub, by its form."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name
