"""Tokenizers of transformers: what their files ask for is honoured or refused."""

from __future__ import annotations

import codecs
import re
import string
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json, replacing_folder, write_json
from avalanche_clip.models.text.settings import (
    HF_TOKENIZER_FILES,
    check_tokenizer_settings,
    error_words,
)
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer,
    Codes,
    check_languages,
)

_CONFIG = "tokenizer_config.json"


class HFCaptionTokenizer(CaptionTokenizer):
    """A transformers tokenizer, optionally behind open_clip's clean-up.

    :param name: folder or hub id of the tokenizer.
    :param context_length: as in the base class.
    :param trim: as in the base class.
    :param truncate: as in the base class.
    :param open_clip: clean captions as ``open_clip.HFTokenizer`` does.
    :param cache_dir: download folder of transformers.
    :param kwargs: settings of ``open_clip.HFTokenizer`` (``clean``,
        ``strip_sep_token``, ``tokenizer_mode``) or of transformers' tokenizers, of
        those that ``TOKENIZER_SETTINGS`` lists. Code beside a tokenizer is never run.
    :raises ValueError: if no tokenizer can be loaded from ``name``, or its files ask
        for something that is not done here (padding or cutting on the left).
    """

    def __init__(
        self,
        name: str,
        context_length: int,
        *,
        trim: bool,
        truncate: bool = True,
        open_clip: bool = False,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        kind = "open_clip_hf" if open_clip else "hf"
        source = f"The tokenizer {name!r}"
        self.name = str(Path(name).expanduser()) if str(name).startswith("~") else name
        self.kwargs = check_tokenizer_settings(kind, kwargs, source)
        self._wrapper: Any = None
        self._clean: Callable[[str], str] | None = None
        #: names by which the tokenizer knows the languages that codes stand for
        self.language_names: dict[int, str] = {}
        settings = {**self.kwargs, "cache_dir": cache_dir, "trust_remote_code": False}
        loader = self._load
        if open_clip:
            loader, settings["context_length"] = self._load_open_clip, context_length
        try:
            _check_folder(self.name)
            self._inner = loader(_without_marks(self.name), settings)
            _check_code(getattr(self._inner, "init_kwargs", {}))
            eot = self._id("eos", "sep")
            if eot is None:
                raise ValueError("it has neither an end nor a separator token")
            length = self._length(context_length, open_clip, trim)
            self.encode("a photo")  # damaged vocabularies show when they are used
        except BaseException as error:  # panics of tokenizers are no Exceptions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(
                f"No tokenizer could be loaded from {name!r}"
                f" ({error_words(error)}); put the tokenizer's files beside the"
                " weights or give its folder."
            ) from error
        pad = self._inner.pad_token_id
        zeroed = self._wrapper is not None and self._wrapper.strip_sep_token
        if zeroed and pad is not None and pad == self._inner.sep_token_id:
            pad = 0  # as open_clip's own call makes it
        super().__init__(
            context_length=length,
            sot_id=self._id("bos", "cls"),
            eot_id=eot,
            pad_id=eot if pad is None else pad,
            vocab_size=len(self._inner),
            trim=trim,
            truncate=truncate,
        )
        self._check_sides()
        self._check_case()

    # ---------------------------------------------------------------- loading
    def _load(self, name: str, settings: dict[str, Any]) -> Any:
        from transformers import AutoTokenizer

        if _is_siglip(name) and not _has_sentencepiece(name):
            return self._load_siglip(name, settings)
        return AutoTokenizer.from_pretrained(name, **settings)

    def _load_siglip(self, name: str, settings: dict[str, Any]) -> Any:
        """Read SigLIP's vocabulary from tokenizer.json, as its own class cleans."""
        from transformers import PreTrainedTokenizerFast

        inner = PreTrainedTokenizerFast.from_pretrained(name, **settings)
        for token, text in (("eos", "</s>"), ("unk", "<unk>"), ("pad", "</s>")):
            if getattr(inner, f"{token}_token") is None:
                setattr(inner, f"{token}_token", text)
        lower = self.kwargs.get("do_lower_case", _config(name).get("do_lower_case"))
        self._clean = SiglipClean(lower is not False)
        return inner

    def _load_open_clip(self, name: str, settings: dict[str, Any]) -> Any:
        from open_clip.tokenizer import HFTokenizer

        self._wrapper = HFTokenizer(name, **settings)
        if "language" in self.kwargs:
            self._require_language(self._wrapper.tokenizer, self.kwargs["language"])
            # open_clip's own call is undone when the next caption is cut
            _speak(self._wrapper.tokenizer, self.kwargs["language"])
        self._clean = self._wrapper.clean_fn
        return self._wrapper.tokenizer

    def _id(self, *names: str) -> int | None:
        """Return the id of the first special token of these that there is."""
        found = [getattr(self._inner, f"{name}_token_id") for name in names]
        return next((int(number) for number in found if number is not None), None)

    def _length(self, context_length: int, open_clip: bool, trim: bool) -> int:
        longest = getattr(self._inner, "model_max_length", None)
        longest = context_length if longest is None else longest
        is_number = isinstance(longest, (int, float)) and not isinstance(longest, bool)
        if not is_number or not longest >= 2:
            raise self._refused("model_max_length", longest, "that is no length")
        if open_clip or longest >= context_length:
            return context_length
        if not trim:
            reason = f"the text tower reads {context_length}"
            raise self._refused("model_max_length", longest, reason)
        return int(longest)

    def _check_sides(self) -> None:
        for key in ("padding_side", "truncation_side"):
            side = getattr(self._inner, key, "right")
            if side != "right":
                raise self._refused(key, side, "rows are filled and cut on the right")

    def _check_case(self) -> None:
        """Refuse a tokenizer whose class ignores what its file says of case."""
        stored = getattr(self._inner, "init_kwargs", {})
        lower = self.kwargs.get("do_lower_case", stored.get("do_lower_case"))
        if lower is None:
            return
        small = " ".join(string.ascii_lowercase)
        ids, large = self.encode(small), self.encode(small.upper())
        unknown = self._inner.unk_token_id in ids
        if (ids != large) if lower else (ids == large and not unknown):
            raise self._refused(
                "do_lower_case", lower, "its vocabulary file says something else"
            )

    def _refused(self, key: str, value: Any, reason: str) -> ValueError:
        return ValueError(
            f"The tokenizer {self.name!r} ({_CONFIG}) asks for {key}={value!r}, which "
            f"cannot be honoured: {reason}."
        )

    # --------------------------------------------------------------- encoding
    @property
    def marks_language(self) -> bool:
        """Whether the ids of a caption depend on its language (NLLB, mBART).

        Such tokenizers take their own names for it (``"fra_Latn"``); codes count if
        ``language_names`` says what they stand for. Others refuse nothing and give
        the same ids for every language.
        """
        return callable(getattr(self._inner, "set_src_lang_special_tokens", None))

    def _ways(self, languages: Codes | None, count: int) -> list[Any]:
        listed = check_languages(languages, count)
        if listed is None or not self.marks_language:
            return [None] * count
        return [self._language(language) for language in listed]

    def _language(self, language: int | str) -> str:
        if isinstance(language, int):
            if language not in self.language_names:
                raise ValueError(
                    f"The tokenizer {self.name!r} marks the language of captions, but "
                    f"the code {language} has no name; set language_names, such as "
                    f"model.tokenizer.language_names = {{{language}: 'eng_Latn'}}."
                )
            language = self.language_names[language]
        self._require_language(self._inner, language)
        return language

    def _require_language(self, inner: Any, language: str) -> None:
        if not callable(getattr(inner, "set_src_lang_special_tokens", None)):
            raise ValueError(
                f"language={language!r}: the tokenizer {self.name!r} marks none"
            )
        names = getattr(inner, "lang_code_to_token", None)
        if isinstance(names, Mapping):
            known = language in names
        else:
            known = inner.convert_tokens_to_ids(language) != inner.unk_token_id
        if not known:
            raise ValueError(
                f"The tokenizer {self.name!r} does not know the language {language!r}; "
                "give its own names, such as 'eng_Latn' (NLLB) or 'en_XX' (mBART)."
            )

    def _encode_in(self, text: str, way: Any) -> list[int]:
        if way is None:
            return self.encode(text)
        before = getattr(self._inner, "src_lang", None)
        try:
            _speak(self._inner, way)
            return self.encode(text)
        finally:
            if before is not None:
                _speak(self._inner, before)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, uncut, special tokens included."""
        if self._clean is not None:
            text = self._clean(text)
        if self._wrapper is not None and self._wrapper.tokenizer_mode == "clips":
            return self._wrapper([text])[0].tolist()
        ids = list(self._inner(text, truncation=False, verbose=False).input_ids)
        if isinstance(self._clean, SiglipClean) and ids[-1:] != [
            self._inner.eos_token_id
        ]:
            ids.append(self._inner.eos_token_id)
        if self._wrapper is not None and self._wrapper.strip_sep_token:
            ids = [0 if i == self._inner.sep_token_id else i for i in ids]
        return ids

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the tokenizer's files into ``folder/tokenizer``."""
        with replacing_folder(Path(folder) / "tokenizer") as target:
            self._inner.save_pretrained(str(target))
            if isinstance(self._clean, SiglipClean):
                _name_siglip(target, self._clean.lower)
        kind = "hf" if self._wrapper is None else "open_clip_hf"
        source = ("revision", "subfolder")
        kwargs = {k: v for k, v in self.kwargs.items() if k not in source}
        return {"type": kind, "file": "tokenizer", "kwargs": kwargs}


def _speak(inner: Any, language: str) -> None:
    """Let a tokenizer of transformers mark this language from now on."""
    if hasattr(inner, "src_lang"):
        inner.src_lang = language
    else:
        inner.set_src_lang_special_tokens(language)


# ------------------------------------------------------------------- SigLIP
class SiglipClean:
    """What transformers' SigLIP tokenizer does to a caption before its vocabulary.

    Source: ``SiglipTokenizer.canonicalize_text`` of transformers 5.23.
    """

    def __init__(self, lower: bool) -> None:
        self.lower = lower

    def __call__(self, text: str) -> str:
        text = text.lower() if self.lower else text
        text = text.translate(str.maketrans("", "", string.punctuation))
        return re.sub(r"\s+", " ", text).strip()


def _config(name: str) -> dict[str, Any]:
    path = Path(name) / _CONFIG
    return read_json(path, dict) if path.is_file() else {}


def _is_siglip(name: str) -> bool:
    folder = Path(name)
    if not (folder / "tokenizer.json").is_file():
        return False
    kind = _config(name).get("tokenizer_class")
    if kind is None and (folder / "config.json").is_file():
        return read_json(folder / "config.json", dict).get("model_type") == "siglip"
    return kind in ("SiglipTokenizer", "SiglipTokenizerFast")


def _has_sentencepiece(name: str) -> bool:
    from importlib.util import find_spec

    has_file = (Path(name) / "spiece.model").is_file()
    return has_file and find_spec("sentencepiece") is not None


def _name_siglip(folder: Path, lower: bool) -> None:
    """Let a stored copy say that it is cleaned as SigLIP's."""
    named = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": lower}
    write_json(folder / _CONFIG, {**read_json(folder / _CONFIG, dict), **named})


def _check_folder(name: str) -> None:
    folder = Path(name)
    if not folder.is_dir():
        return
    if not any((folder / file).is_file() for file in HF_TOKENIZER_FILES):
        # transformers 5 would make an empty vocabulary of such a folder
        raise ValueError(f"it holds none of {', '.join(HF_TOKENIZER_FILES)}")
    _check_code(_config(name))
    for file in _PLAIN_FILES:
        if (folder / file).is_file():
            read_json(folder / file, dict)


_PLAIN_FILES = (
    "config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_COPIES: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that last as long as the process: slow tokenizers copy from them."""


def _without_marks(name: str) -> str:
    """Return a folder whose JSON files have no byte order marks.

    transformers does not read those, which all other readers here skip.
    """
    folder = Path(name)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    marked = {file for file in files if _is_marked(file)}
    if not marked:
        return name
    _COPIES.append(tempfile.TemporaryDirectory(prefix="avalanche_clip-"))
    for file in folder.iterdir():
        target = Path(_COPIES[-1].name, file.name)
        if file in marked:
            target.write_bytes(file.read_bytes().removeprefix(codecs.BOM_UTF8))
        else:
            target.symlink_to(file.absolute())
    return _COPIES[-1].name


def _is_marked(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(3) == codecs.BOM_UTF8


def _check_code(config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise ValueError(
            f"its {_CONFIG} asks for code that lies beside it (auto_map), which is "
            "never run"
        )
