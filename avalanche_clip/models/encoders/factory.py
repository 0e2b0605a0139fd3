"""One function that creates every supported model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avalanche_clip.common.checks import closest, did_you_mean, require_choice
from avalanche_clip.models.encoders import architectures, weights
from avalanche_clip.models.encoders import sources as model_sources
from avalanche_clip.models.encoders.agreement import (
    check_same_architecture,
    check_tag_activation,
)
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.folder import restore_growth
from avalanche_clip.models.encoders.hf_loading import CONFIG_NAME, hf_folder
from avalanche_clip.models.encoders.output import PRECISIONS
from avalanche_clip.models.encoders.presets import (
    PRESET_WEIGHTS,
    PRESETS,
    preset_config,
    preset_weights,
)
from avalanche_clip.models.encoders.sources import Stored
from avalanche_clip.models.encoders.weight_layouts import load_into
from avalanche_clip.models.images.preprocessing import (
    OPENAI,
    of_name,
    of_tag,
    read_image_processor,
    warn_of_default,
)
from avalanche_clip.models.text.build import json_hash
from avalanche_clip.models.text.settings import is_hub_id

_HF_PREFIX = "hf:"
_HUB_PREFIX = "hf-hub:"
_LOCAL_PREFIX = "local-dir:"
_LOG = logging.getLogger(__name__)


@dataclass
class _Request:
    """What a call asks for, resolved."""

    name: str
    config: dict[str, Any]
    #: what says how pictures are prepared, and whether that is only a guess
    source: str
    guessed: bool = False
    weights: Path | None = None
    label: str | None = None
    stored: Stored | None = None
    growth: dict[str, Any] | None = None

    def adopt(self, stated: dict[str, Any], source: str, whole: bool = False) -> None:
        """Prepare pictures as something says that is more than a guess."""
        model_sources.adopt(self.config, stated, whole=whole)
        self.source, self.guessed = source, False


def build_dual_encoder(
    name: str | Path | Mapping[str, Any],
    pretrained: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    verify: bool = True,
) -> DualEncoder:
    """Create a dual encoder; see :func:`create_dual_encoder` in ``models``.

    It knows no folders of runs, and nothing that is attached.
    """
    require_choice("precision", precision, PRECISIONS)
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    request = _resolve(name, pretrained, cache)
    loaded = None
    if request.weights is not None:
        ours = request.stored is not None and request.stored.is_ours
        named = request.weights.name == weights.WEIGHTS_FILE
        loaded = weights.read_weights(
            request.weights, required=ours and named, verify=verify
        )
        _settle(request, loaded)
    if request.guessed:
        warn_of_default(request.name, request.source)
    _LOG.info("Preprocessing of %s: %s", request.name, request.source)
    clip = _build(request)
    if loaded is not None and request.growth is None:
        load_into(clip, loaded.state, str(request.weights))
    model = DualEncoder(
        clip,
        request.config,
        pretrained=request.label,
        precision=precision,
        cache_dir=cache,
        preprocessing_source=request.source,
    )
    if request.growth is not None and loaded is not None:
        length = model.context_length
        restore_growth(model, request.growth, length, model.is_causal_text)
        load_into(clip, loaded.state, str(request.weights))
        model.reset_scale_bound()
    if loaded is not None:
        model.source = {
            "name": None if isinstance(name, Mapping) else str(name),
            "pretrained": None if pretrained is None else str(pretrained),
            "cache_dir": cache,
            "precision": precision,
        }
    return model.to(device).train()


def _build(request: _Request) -> torch.nn.Module:
    try:
        return architectures.build_clip(request.config)
    except ValueError as error:
        if request.stored is None:
            raise
        raise ValueError(f"{request.stored.path}: {error}") from error


def _resolve(name: Any, pretrained: str | Path | None, cache: str | None) -> _Request:
    if "" in (name, pretrained):  # a path would make it the working folder
        raise ValueError(f"name={name!r} and pretrained={pretrained!r}: give a name.")
    if isinstance(name, Mapping):
        request = _from_mapping(dict(name))
    else:
        request = _from_text(str(name), cache)
    return _with_weights(request, pretrained, cache)


def _from_text(name: str, cache: str | None) -> _Request:
    if name in PRESETS:
        return _Request(name, preset_config(name), f"the preset {name}")
    if name.startswith(_HF_PREFIX):
        return _from_transformers(name.removeprefix(_HF_PREFIX), cache)
    if name.startswith(_HUB_PREFIX):
        return _from_hub(name, cache)
    from open_clip.factory import list_models

    names, plain = list_models(), name.replace("/", "-")
    if plain in names:
        return _from_name(plain)
    folder = Path(name.removeprefix(_LOCAL_PREFIX)).expanduser()
    if folder.is_dir():
        return _from_folder(folder)
    close = closest(name, [*PRESETS, *names])
    hint = f" Did you mean {close}?" if close else ""
    raise ValueError(
        f"No model or folder is called {name!r}.{hint} Names are open_clip's"
        f" (open_clip.list_models()), {', '.join(PRESETS)}, 'hf:<folder or id>',"
        " 'hf-hub:<id>' or an existing folder."
    )


def _from_mapping(values: dict[str, Any]) -> _Request:
    config = architectures.complete_config(values)
    stated = architectures.stated_preprocess(values, "The configuration")
    source = "the configuration given" if stated else "the default"
    return _Request("the configuration", config, source)


def _from_name(name: str) -> _Request:
    from open_clip.factory import get_model_config

    config = architectures.complete_config(get_model_config(name), name)
    stated, source = of_name(name)
    config["preprocess_cfg"].update(stated)
    # names without tags have no weights to be wrong about, until a file is given
    guessed = not stated and "disagree" in source
    return _Request(name, config, source, guessed=guessed)


# ------------------------------------------------------------------ folders
def _of_stored(
    name: str, stored: Stored, label: str, found: Path | None = None
) -> _Request:
    source = stored.source or f"the default, since {stored.path} states none"
    request = _Request(name, stored.config, source, weights=found, label=label)
    request.stored, request.growth = stored, stored.growth
    return request


def _from_folder(folder: Path) -> _Request:
    files = weights.config_files(folder)
    if not files and (folder / CONFIG_NAME).is_file():
        return _from_transformers(str(folder), None)
    if not files:
        raise ValueError(
            f"{folder} holds no model: expected {weights.CONFIG_FILE},"
            f" {weights.OPEN_CLIP_FILE} or config.json."
        )
    for file in files:
        found = weights.find_weights(folder, file.name)
        if found is not None:
            stored = model_sources.read_stored(file)
            return _of_stored(str(folder), stored, str(folder), found)
        if file.name == weights.CONFIG_FILE:
            break  # what else lies there is not the model that was saved
    for file in files:  # a damaged one is the better reason
        model_sources.read_stored(file)
    raise _no_weights(folder, files[0].name)


def _no_weights(folder: Path, config: str) -> ValueError:
    return ValueError(
        f"The model in {folder} cannot be loaded: it holds a configuration ({config})"
        " but no weights of it; for random weights pass the content of the"
        " configuration as a dictionary."
    )


def _from_hub(name: str, cache: str | None) -> _Request:
    from open_clip.pretrained import download_pretrained_from_hf

    ident = name.removeprefix(_HUB_PREFIX)
    try:
        path = download_pretrained_from_hf(
            ident, filename=weights.OPEN_CLIP_FILE, cache_dir=cache
        )
        file = download_pretrained_from_hf(ident, cache_dir=cache)
    except Exception as error:  # the hub client raises types of several libraries
        raise RuntimeError(
            f"{name} could not be downloaded ({error}); download the repository and"
            " give its folder."
        ) from error
    stored = model_sources.read_open_clip(Path(path), None)
    if stored.config["tokenizer"].get("type") == "open_clip_hf":
        stored.config["tokenizer"].setdefault("file", ident)
    return _of_stored(name, stored, name, Path(file))


# ------------------------------------------------------------- transformers
def _from_transformers(source: str, cache: str | None) -> _Request:
    stored = model_sources.read_transformers(source, cache)
    folder = Path(source).expanduser()
    if folder.is_dir():
        found = _weights_of(folder)
        return _of_stored(f"hf:{source}", stored, str(folder), found)
    return _of_stored(f"hf:{source}", stored, source)


def _weights_of(folder: Path) -> Path:
    found = weights.find_weights(folder, CONFIG_NAME)
    if found is None:
        raise _no_weights(folder, CONFIG_NAME)
    return found


# ------------------------------------------------------------------ weights
def _with_weights(
    request: _Request, pretrained: str | Path | None, cache: str | None
) -> _Request:
    """Add the weights that ``pretrained`` names to a request."""
    if pretrained is None:
        if request.stored is not None and request.weights is None:
            # large, so fetched when the configuration has been read and others are
            # not given
            hub = hf_folder(str(request.label), cache, weights=True)
            request.weights = _weights_of(hub)
        return request
    path = Path(pretrained).expanduser()
    request.growth = None
    if request.name in PRESETS and pretrained in PRESET_WEIGHTS:
        request.weights = preset_weights(request.name, str(pretrained))
    elif path.is_file():
        _beside(path, request)
        request.weights = path
    elif path.is_dir():
        library = request.config["library"]
        request.stored = model_sources.stored_beside(path, library)
        config = None if request.stored is None else request.stored.path.name
        request.weights = weights.find_weights(path, config)
        if request.weights is None:
            raise ValueError(f"{path} holds no weight file of {request.name}.")
    else:
        request.weights = _tagged(request, str(pretrained), cache)
        request.stored = None
    if request.stored is not None:
        check_same_architecture(request.config, request.stored.config, str(path))
        if path.is_dir() or path.name == weights.WEIGHTS_FILE:
            request.growth = request.stored.growth
    request.label = str(pretrained)
    return request


def _beside(path: Path, request: _Request) -> None:
    """Read the configuration that was saved next to a weight file."""
    request.stored = model_sources.stored_beside(path.parent, request.config["library"])
    if request.stored is None:
        size = request.config["preprocess_cfg"]["size"]
        stated, source = read_image_processor(path.parent, size)
        if source is not None:
            request.adopt(stated, source)


def _settle(request: _Request, loaded: weights.LoadedWeights) -> None:
    """Let what lies beside or inside the weights say how they were trained.

    The file that people edit counts first, then what the weights hold themselves,
    then what others' files beside them say.
    """
    stored, path = request.stored, request.weights
    ours = stored is not None and stored.is_ours
    # a file under a name of which open_clip knows no weights
    request.guessed |= stored is None and request.source.startswith("the default,")
    if stored is not None and not ours and loaded.config is None:
        _take(request, stored)
    if loaded.is_openai:
        check_tag_activation(request.name, request.config, str(path), True)
        if stored is None or stored.source is None:
            request.adopt(OPENAI, f"OpenAI's archive {path}")
    if loaded.config is not None:
        where = f"The configuration in {path}"
        # nobody can edit that of pictures, which need not be allowed if it is not used
        held = {**loaded.config, "preprocess_cfg": None} if ours else loaded.config
        inner = architectures.complete_config(held, where)
        check_same_architecture(request.config, inner, str(path))
        if not ours:
            said = f"the configuration in {path}"
            request.adopt(inner["preprocess_cfg"], said, whole=True)
            _take_tokenizer(request, loaded.config.get("tokenizer"))
    if stored is not None and ours:
        _take(request, stored)


def _take(request: _Request, stored: Stored) -> None:
    if stored.source is not None:
        request.adopt(stored.preprocess, stored.source, whole=stored.is_ours)
    if stored.tokenizer:
        request.config["tokenizer"] = stored.config["tokenizer"]
    if stored.config["library"] == "transformers":
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        theirs = stored.config["hf_config"]["text_config"]
        request.config["hf_config"]["text_config"].update(
            {key: theirs[key] for key in ids if key in theirs}
        )


def _take_tokenizer(request: _Request, spec: Any) -> None:
    """Use the tokenizer that weights name, or compare it with the one at hand."""
    if not isinstance(spec, dict):
        return
    spec = dict(spec)
    digest = spec.pop("sha256", None)
    name = spec.get("file")
    if name is not None and not (is_hub_id(name) and not Path(name).exists()):
        return  # a file of another machine: the tokenizer at hand is used
    if name is not None or "preset" in spec or spec.get("type") == "open_clip":
        request.config["tokenizer"] = spec
        return
    own = request.config.get("tokenizer") or {}
    if digest is not None and json_hash(own) not in (digest, None):
        warnings.warn(
            f"{request.weights} was trained with another tokenizer than that of "
            f"{request.name}; give a configuration or a folder that names its "
            "tokenizer file.",
            UserWarning,
            stacklevel=4,
        )


def _tagged(request: _Request, tag: str, cache: str | None) -> Path:
    if request.name in PRESETS:
        return preset_weights(request.name, tag)
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(request.name)
    if tag.lower().replace("-", "_") not in tags and tag.lower() not in tags:
        have = f"tags {', '.join(tags)}" if tags else "no tags"
        raise ValueError(
            f"pretrained={tag!r} is neither a file, a folder nor a tag of"
            f" {request.name}, which has {have}.{did_you_mean(tag, tags)}"
        )
    return _download_tag(request, tag, cache)


def _download_tag(request: _Request, tag: str, cache: str | None) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    facts = get_pretrained_cfg(request.name, tag)
    quick = facts.get("quick_gelu")
    check_tag_activation(request.name, request.config, tag, quick)
    request.adopt(of_tag(facts), f"open_clip's tag {tag!r} of {request.name}")
    try:
        return Path(download_pretrained(facts, cache_dir=cache))
    except Exception as error:  # the download raises types of several libraries
        raise RuntimeError(
            f"The weights {tag!r} of {request.name} could not be downloaded ({error});"
            " give a local file as pretrained."
        ) from error
