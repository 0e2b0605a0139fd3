"""State dictionaries as people wrap and name them, brought to one model's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from avalanche_clip.common.checks import require_type
from avalanche_clip.models.encoders.torch_files import Inert

# numbers that OpenAI's archives keep beside the weights
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")
_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "clip_model.", "clip.")
# what compiling, sharding and checkpointing put before a module's own names
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def take_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Find the state dictionary in what a file holds.

    :param content: a state dictionary, or a checkpoint that holds one under
        ``state_dict``, ``model_state_dict`` or ``model``.
    :param path: for messages.
    :raises ValueError: if there is none, or it holds more than tensors.
    """
    what, give = f"What {path} holds", "a state dictionary, as of model.state_dict()"
    require_type(content, dict, what, give, error=ValueError)
    while (inner := _nested(content)) is not None:
        content = inner
    strange = [k for k, v in content.items() if not isinstance(v, Tensor)]
    strange += [k for k in content if not isinstance(k, str)]
    if strange:
        found = content[strange[0]]
        kind = "value of NumPy" if isinstance(found, Inert) else type(found).__name__
        raise ValueError(
            f"{path} holds more than tensors ({strange[0]!r} is a"
            f" {kind}); give a state dictionary or a"
            f" checkpoint with the key {' or '.join(map(repr, _KEYS))}."
        )
    return dict(content)


def _nested(content: dict[str, Any]) -> dict[str, Any] | None:
    found = (content[key] for key in _KEYS if isinstance(content.get(key), dict))
    return next(found, None)


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before all names.

    >>> import torch
    >>> sorted(strip_prefixes({"module.model.a": torch.ones(1)}))
    ['a']
    """
    for wrapper in _WRAPPERS:
        state = {key.replace(wrapper, ""): value for key, value in state.items()}
    while state:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                break
        else:
            return state
    return state


def load_into(clip: Any, state: dict[str, Tensor], source: str | Path) -> None:
    """Copy weights into a freshly built model, all of them or none.

    Older key layouts of open_clip are translated. Nothing is resized or left
    at random; counters of batch norms, which older releases did not store, stay 0.

    :param clip: wrapped open_clip or transformers model.
    :param state: tensors by name.
    :param source: named in messages.
    :raises ValueError: if keys are missing, unexpected or of another shape.
    """
    own = clip.state_dict()
    state = _translate(clip, state, source)
    for key in own:
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, own[key])
    problems = misfits(
        [k for k in own if k not in state],
        [k for k in state if k not in own],
        [
            f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    )
    if problems:
        raise ValueError(
            f"The weights in {source} do not fit the model: {problems}. Use"
            " the model name or configuration they were trained with."
        )
    clip.load_state_dict(state)


def misfits(missing: list[str], unexpected: list[str], reshaped: list[str]) -> str:
    """Describe tensors that do not fit a model, empty if all do."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(
        f"{len(names)} {what} ({'; '.join(sorted(names)[:3])}"
        f"{', ...' if names[3:] else ''})"
        for what, names in kinds.items()
        if names
    )


def _translate(
    clip: Any, state: dict[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    own = clip.state_dict()
    state = {k: v for k, v in state.items() if not _is_stale(k, own)}
    if hasattr(clip, "visual"):
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict

        try:
            state = convert_state_dict(clip, state)
        except (KeyError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"The weights in {source} have the names of a published model but "
                f"not its tensors ({error!r}); use the model name they belong to."
            ) from error
        if "positional_embedding" in state and "positional_embedding" not in own:
            state = convert_to_custom_text_state_dict(state)
        elif "positional_embedding" in own and "text.positional_embedding" in state:
            state = {k.removeprefix("text."): v for k, v in state.items()}
    for name in ("logit_scale", "logit_bias"):
        # scalar in some releases, one element in others
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    return state


def _is_stale(key: str, own: dict[str, Tensor]) -> bool:
    """Recognise buffers that older transformers releases stored."""
    return key.endswith(".position_ids") and key not in own
