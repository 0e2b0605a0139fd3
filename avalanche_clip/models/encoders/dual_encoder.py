"""CLIP-like models behind one interface."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.models.encoders import architectures, inputs, parameters, use
from avalanche_clip.models.encoders.blocks import ATTACHMENTS, BlockView
from avalanche_clip.models.encoders.folder import save_model
from avalanche_clip.models.encoders.macs import count_passes
from avalanche_clip.models.encoders.output import (
    PRECISIONS,
    CLIPOutput,
    compute_type,
    joint_features,
    model_output,
    unit_features,
)
from avalanche_clip.models.encoders.towers import inner_path, plain_name
from avalanche_clip.models.images.augmentation import TinyAugmentation
from avalanche_clip.models.images.transforms import (
    ImageTransform,
    TinyTransform,
    build_transform,
)
from avalanche_clip.models.text.tokenizers import CaptionTokenizer

_TOWERS = ("image", "text")
_MAX_LOG_SCALE = math.log(100)


class DualEncoder(nn.Module):
    """An image tower and a text tower with a shared space.

    Wraps an open_clip or transformers model (attribute ``clip``) without
    changing it: its parameters keep their names below ``clip.``. Adapters
    attach to the sub-modules that :meth:`blocks` lists.

    :param clip: the wrapped model.
    :param config: full configuration (see ``architectures``).
    :param pretrained: where the weights come from, None for random ones.
    :param precision: storage type of frozen weights: ``"fp32"``, ``"fp16"``
        or ``"bf16"``. With a 16-bit type every parameter is frozen; make
        towers trainable again with :meth:`unfreeze`, which returns them to
        float32.
    :param cache_dir: download folder for the tokenizer.
    :param preprocessing_source: what said how pictures are prepared.
    """

    def __init__(
        self,
        clip: nn.Module,
        config: dict[str, Any],
        *,
        pretrained: str | None = None,
        precision: str = "fp32",
        cache_dir: str | None = None,
        preprocessing_source: str = "the configuration given",
    ) -> None:
        super().__init__()
        require_choice("precision", precision, PRECISIONS)
        self.clip: Any = clip
        for name in ATTACHMENTS:
            self.register_module(name, None)
        self._config = config
        self._towers = architectures.towers_of(config)
        self._cache_dir = cache_dir
        #: the tokenizer, None before it is first used
        self.own_tokenizer: CaptionTokenizer | None = None
        #: shapes of the plain architecture's tensors, by their names in ``clip``
        self.plain_shapes = {k: tuple(v.shape) for k, v in clip.state_dict().items()}
        self._fingerprint = FingerprintCache()
        self._macs: dict[Any, dict[str, int]] = {}
        self._still: set[str] = set()
        #: where the weights come from, None while they are random
        self.pretrained = pretrained
        self.precision = precision
        #: what says how pictures are prepared: a file, a tag, a name, the default
        self.preprocessing_source = preprocessing_source
        #: arguments of the call that has loaded weights, None without
        self.source: dict[str, Any] | None = None
        #: whether activations are computed again in the backward pass
        self.grad_checkpointing = False
        #: raw width of the shared space
        self.embed_dim = architectures.embed_dim_of(config, clip)
        #: both features of the last forward pass, ``(B, 2D)``, or None
        self.features: Tensor | None = None
        #: upper bound when clamping ``logit_scale``, None with a bias
        self.max_log_scale: float | None = None
        self.reset_scale_bound()
        if precision != "fp32":
            self.freeze()

    # ------------------------------------------------------------- description
    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which ``create_dual_encoder`` rebuilds this model."""
        return copy.deepcopy(self._config)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the square input in pixels, or (height, width)."""
        height, width = self._towers.image_size(self.clip)
        return height if height == width else (height, width)

    @property
    def context_length(self) -> int:
        """Longest text in tokens, start and end token included."""
        return architectures.context_length_of(self._config)

    @property
    def is_causal_text(self) -> bool:
        """True if texts may be cut after their end token without any effect."""
        return self._towers.is_causal(self.clip)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The parameter: logarithm of the factor that multiplies cosines."""
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """The parameter added to scaled cosines, None without one."""
        return getattr(self.clip, "logit_bias", None)

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """The model's tokenizer; assign another one to replace it."""
        if self.own_tokenizer is None:
            causal, label = self.is_causal_text, self.pretrained
            self.own_tokenizer = architectures.tokenizer_of(
                self._config, trim=causal, cache_dir=self._cache_dir, label=label
            )
        return self.own_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: CaptionTokenizer) -> None:
        self.own_tokenizer = tokenizer

    def transform(
        self, train: bool, augmentation: TinyAugmentation | None = None
    ) -> ImageTransform | TinyTransform:
        """Build the preprocessing that the weights were trained with.

        :param train: random augmentation (True) or deterministic.
        :param augmentation: replaces the configured augmentation.
        :return: callable from PIL image or tensor to float ``(3, H, W)``.
        """
        return build_transform(self._config["preprocess_cfg"], train, augmentation)

    def blocks(self, tower: str) -> list[BlockView]:
        """List the residual blocks of one tower in order.

        :param tower: ``"image"`` or ``"text"``.
        :return: views of the blocks' named sub-modules.
        :raises ValueError: for towers without pre-norm residual attention
            blocks, convolutional ones for example.
        """
        require_choice("tower", tower, _TOWERS)
        return self._towers.blocks(self.clip, tower)

    # --------------------------------------------------------------- encoding
    def encode_image(self, image: Tensor, normalize: bool = True) -> Tensor:
        """Encode preprocessed images.

        :param image: float, shape ``(B, 3, H, W)``.
        :param normalize: scale every feature to length 1.
        :return: float32, shape ``(B, D)``, under autocast as well.
        :raises ValueError: if ``image`` has another type or a shape that the
            tower cannot take.
        """
        raw = self._raw_image(image)
        return unit_features(raw)[0] if normalize else raw

    def encode_text(self, text: Tensor, normalize: bool = True) -> Tensor:
        """Encode token ids.

        Rows shorter than ``context_length`` are encoded at their length by
        causal towers (within 1e-5 of the full length, since nothing after the
        end token is read) and padded to the full length for other towers.

        :param text: long, shape ``(M, L)``, L at most ``context_length``.
        :param normalize: scale every feature to length 1.
        :return: float32, shape ``(M, D)``, under autocast as well.
        :raises TypeError: if ``text`` is not an integer tensor.
        :raises ValueError: if ``text`` has another shape or is too long.
        """
        raw = self._raw_text(text)
        return unit_features(raw)[0] if normalize else raw

    def forward(self, batch: Mapping[str, Any]) -> CLIPOutput:
        """Encode an image-text batch.

        :param batch: mapping with ``image`` ``(B, 3, H, W)``, ``text``
            ``(M, L)`` and, where M differs from B, ``owner`` ``(M,)``: the
            image row of every text.
        :return: normalised float32 features, the exponentiated scale, and
            ``aux`` with ``image_norm``, ``text_norm`` and, for models that
            have one, ``logit_bias``.
        :raises ValueError: if a key is missing.

        Side effect: ``features`` becomes ``(B, 2D)``, image feature beside
        the feature of the image's first text; texts without an owner that do
        not pair with the images (class prompts) leave the image half alone.
        """
        for key in ("image", "text"):
            if key not in batch:
                raise ValueError(
                    f"The batch has the keys {sorted(batch)} but not {key!r}; use"
                    " encode_image or encode_text for one tower."
                )
        image_features, image_norm = unit_features(self._raw_image(batch["image"]))
        text_features, text_norm = unit_features(self._raw_text(batch["text"]))
        self.features = joint_features(
            image_features, text_features, batch.get("owner")
        )
        norms = {"image_norm": image_norm, "text_norm": text_norm}
        return model_output(self, image_features, text_features, **norms)

    def _raw_image(self, image: Tensor) -> Tensor:
        inputs.check_images(image)
        size = self._towers.image_size(self.clip)
        try:
            with self._compute_type(image):
                return self._towers.encode_image(self.clip, image).float()
        except (RuntimeError, AssertionError) as error:
            # convolutional towers take other sizes, so shapes are not compared before
            fits = tuple(image.shape[1:]) == (3, *size)
            if fits or isinstance(error, torch.OutOfMemoryError):
                raise
            raise inputs.wrong_size(image, size) from error

    def _raw_text(self, text: Tensor) -> Tensor:
        limit = self.context_length
        inputs.check_tokens(text, limit)
        if not self.is_causal_text and text.shape[1] < limit:
            missing = limit - text.shape[1]
            text = nn.functional.pad(text, (0, missing), value=self.tokenizer.pad_id)
        with self._compute_type(text):
            end = self.tokenizer.eot_id if self.is_causal_text else -1
            return self._towers.encode_text(self.clip, text, end).float()

    def _compute_type(self, tensor: Tensor) -> AbstractContextManager[Any]:
        if self.training and self.precision != "fp32":
            self.check_trainable()
        return compute_type(self.precision, tensor.device.type)

    # --------------------------------------------------------------------- use
    def classify(
        self,
        images: Any,
        class_names: Sequence[str],
        templates: Sequence[str] | None = None,
    ) -> Tensor:
        """Tell which of some classes pictures show.

        Adapters act as they are set; mode and weights of the model stay.

        :param images: a float tensor ``(B, 3, H, W)`` is taken as preprocessed, as
            ``transform(False)`` gives it. PIL images, paths and uint8 arrays
            ``(H, W, 3)`` or tensors ``(3, H, W)``, one or a list, go through
            ``transform(False)``.
        :param class_names: C names.
        :param templates: each with one ``{}``; default ``"a photo of a {}."``.
        :return: probabilities ``(B, C)``, float32 without gradient: the softmax of
            ``logit_scale`` times the cosines with the class vectors. Rows add up to
            1, for models trained with a sigmoid too.
        :raises TypeError: for one string in place of a list, for other entries.
        :raises ValueError: for empty lists, templates without ``{}``, other shapes.
        :raises FileNotFoundError: for paths without a file.

        Source: Radford et al., ICML 2021 (CLIP, arXiv 2103.00020); class vectors as
        :func:`~avalanche_clip.evaluation.functional.class_vectors` makes them.

        >>> from avalanche_clip import create_dual_encoder
        >>> model = create_dual_encoder("tiny-emoji")
        >>> model.classify(torch.zeros(2, 3, 48, 48), ["cat", "dog", "fish"]).shape
        torch.Size([2, 3])
        """
        return use.classify(self, images, class_names, templates)

    def search(self, query: Any, candidates: Any, k: int = 10) -> tuple[Tensor, Tensor]:
        """Find what is most similar to texts or pictures.

        :param query: one or several texts or pictures, see :meth:`classify`. A
            string is a text, unless it ends as picture files do (``".png"``).
        :param candidates: several texts or pictures, N.
        :param k: number of results per query, at most N of them.
        :return: cosines and positions among the candidates, ``(Q, min(k, N))``, the
            best first and among equal ones the first; float32 and int64.
        :raises TypeError: for other kinds of entries, and for both kinds in one list.
        :raises ValueError: for empty lists, other shapes, and k below 1.
        """
        return use.search(self, query, candidates, k)

    # -------------------------------------------------------------- parameters
    def tower_of(self, name: str) -> str | None:
        """Tell which tower a parameter or buffer belongs to.

        :param name: name as in ``named_parameters()``.
        :return: ``"image"``, ``"text"``, or None for ``logit_scale``,
            ``logit_bias`` and everything outside the wrapped model. A model that
            was compiled or adapted by peft as a whole is looked through.
        :raises ValueError: if ``clip`` was wrapped in something without towers.
        """
        inner = self._inner_name(name)
        if inner is None or inner in parameters.SCALES:
            return None
        return "image" if inner.startswith(self._towers.image_prefixes) else "text"

    def _inner_name(self, name: str) -> str | None:
        """Return a name as the wrapped model itself has it, None outside of it.

        ``torch.compile`` and peft put names of their own before it.
        """
        prefix = f"clip.{inner_path(self.clip, self._towers.image_child)}"
        return plain_name(name[len(prefix) :]) if name.startswith(prefix) else None

    def is_plain(self, name: str) -> bool:
        """Whether a parameter is one of the architecture, with nothing attached."""
        return self._inner_name(name) in self.plain_shapes

    def freeze(self, tower: str | None = None) -> None:
        """Stop training one tower, or everything.

        Frozen towers are stored in ``precision``, and their batch norms keep
        their running statistics.

        :param tower: ``"image"``, ``"text"``, or None for all parameters.
        """
        for parameter in self._parameters_of(tower):
            parameter.requires_grad_(False)
        self._still |= {tower} if tower else set(_TOWERS)
        if self.precision != "fp32":
            parameters.cast_frozen(self)
        self.train(self.training)

    def unfreeze(
        self, tower: str | None = None, last_blocks: int | None = None
    ) -> None:
        """Train one tower again, or everything, in float32.

        :param tower: ``"image"``, ``"text"``, or None for all parameters.
        :param last_blocks: train only so many of the last blocks and what follows
            them, and freeze the rest of the tower (with None: of both towers).
        :raises ValueError: if a tower has fewer blocks.
        """
        chosen = self._parameters_of(tower)
        if last_blocks is not None:
            parts = [tower] if tower else list(_TOWERS)
            chosen = parameters.last_blocks(self, parts, last_blocks)
            for part in parts:
                self.freeze(part)
        for parameter in chosen:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self._still -= {tower} if tower else set(_TOWERS)
        for adapters in filter(None, map(self._modules.get, ATTACHMENTS)):
            adapters.restore_trainable()  # type: ignore[operator]
        self.train(self.training)

    def _parameters_of(self, tower: str | None) -> list[nn.Parameter]:
        require_choice("tower", tower, (*_TOWERS, None))
        named = self.named_parameters()
        return [p for name, p in named if tower in (None, self.tower_of(name))]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep fewer activations: they are computed again in the backward pass.

        Losses and gradients stay the same. Budgets do not count the second pass.

        :param enable: False keeps all activations again.
        :raises ValueError: for towers that cannot, batch norms, and with adapters.
        """
        parameters.set_checkpointing(self, enable)
        self.grad_checkpointing = enable

    def check_trainable(self) -> None:
        """Make sure that trainable parameters are float32.

        :raises ValueError: naming the first that is not.
        """
        parameters.check_trainable(self)

    def train(self, mode: bool = True) -> DualEncoder:
        """Switch between training and evaluation mode, as ``nn.Module`` does.

        Batch norms of frozen towers stay in evaluation mode.
        """
        super().train(mode)
        if mode and self._still:
            for name, norm in parameters.batch_norms(self):
                norm.train(self.tower_of(f"{name}.") not in self._still)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> DualEncoder:
        inputs.check_conversion(fn)
        super()._apply(fn, recurse)
        return self

    def reset_scale_bound(self) -> None:
        """Let the scale grow to 100, or to the value it has now if that is more."""
        self.max_log_scale = None
        if self.logit_bias is None:
            loaded = float(self.logit_scale.detach().max())
            self.max_log_scale = max(_MAX_LOG_SCALE, loaded)

    @torch.no_grad()
    def reinitialize(self, seed: int) -> None:
        """Give every weight a fresh random value, in place.

        The same seed gives the same weights on every device, equal to those of a
        new model created after ``torch.manual_seed(seed)``; the global generators
        are left alone. Parameter objects stay the same.

        :param seed: any integer.
        :raises ValueError: if adapters or grown tables are attached, which
            the architecture does not have.
        """
        self.check_plain("reinitialize")
        parameters.reinitialize(self, seed)
        self.pretrained = None
        self.reset_scale_bound()

    def check_plain(self, action: str, *, grown: str | None = None) -> None:
        """Raise ValueError unless the weights are those of the architecture.

        :param action: what needs that, for the message.
        :param grown: key of a tensor of ``clip`` that may have another shape.
        """
        parameters.check_plain(self, action, grown)

    # ------------------------------------------------------------ measurements
    def state_fingerprint(self, tower: str | None = None) -> str:
        """Return a content hash of the weights.

        Unchanged tensors are not hashed again. Python state (an adapter's active
        router, for example) is not part of it.

        :param tower: ``"image"`` or ``"text"`` for what can change the
            features of that tower; None for everything, scale included.
        :return: 32 hexadecimal digits.
        """
        require_choice("tower", tower, (*_TOWERS, None))
        return self._fingerprint(self._tensors_of(tower))

    def _tensors_of(self, tower: str | None) -> Iterator[tuple[str, Tensor]]:
        return parameters.tensors_of(self, tower)

    def macs(self, text_length: int | None = None) -> dict[str, int]:
        """Count multiply-adds of one forward pass.

        :param text_length: tokens per caption; None for ``context_length``.
        :return: ``{"image": per image, "text": per caption}``. Counted once
            and remembered until parameters are added or resized.
        """
        length = self.context_length
        if text_length is not None and self.is_causal_text:
            length = as_size(text_length, "text_length")
        key = (length, tuple(p.numel() for p in self.parameters()))
        if key not in self._macs:
            size = self._towers.image_size(self.clip)
            self._macs[key] = count_passes(self, size, length)
        return dict(self._macs[key])

    # ----------------------------------------------------------------- storage
    def save(self, folder: str | Path) -> None:
        """Write configuration, tokenizer and weights into a folder.

        ``create_dual_encoder(folder)`` loads it again, grown token table and all.

        :param folder: created if missing; files of the same names are replaced.
        :raises ValueError: if adapters are attached, or rows are being trained.
        """
        save_model(self, folder)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"}
        # neither the last graph nor caches belong to a copy
        state["features"] = None
        state["_fingerprint"] = FingerprintCache()
        return state

    def extra_repr(self) -> str:
        """Describe the model in one line."""
        return (
            f"library={self._towers.library}, embed_dim={self.embed_dim},"
            f" image_size={self.image_size}, context_length={self.context_length},"
            f" pretrained={self.pretrained!r}, precision={self.precision!r}"
        )
