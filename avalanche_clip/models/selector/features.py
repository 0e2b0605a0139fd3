"""Frozen early features of a CLIP-like model, from which a router is chosen.

Our choice in place of AlexNet (see ``selector_alexnet``): nothing is downloaded,
and the features come with the model's own pass. Attribute names were checked
against open_clip 3.3, timm 1.0 and transformers 5.23.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.models.encoders.dual_encoder import DualEncoder

POOLINGS = ("mean", "mean_std", "none", "grid")  # the last for places only
GRID = 4  # cells per side of the pooling "grid"
# where the first stage of a convolutional tower begins
_FIRST_STAGES = ("stages", "layer1", "s1", "blocks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class SelectorFeatures(nn.Module):
    """Base of the frozen feature extractors; always in evaluation mode.

    :ivar name: written into a selector's state.
    :ivar feature_size: number F of features per image.
    :ivar standardize: whether a selector standardises the features with the
        statistics of its reference images.
    :ivar was_trainable: whether the model whose layers these are may have
        changed by the time a state is loaded, so that they belong to it.
    """

    name = ""
    standardize = False
    was_trainable = False
    feature_size: int

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 features ``(B, F)`` of images ``(B, 3, H, W)``."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Plain data that must agree when a selector's state is loaded."""
        return {}

    def input_state(self) -> Any:
        """What was said about incoming images, as plain data; None for nothing."""
        return None

    def load_input_state(self, state: Any) -> None:
        """Put back what :meth:`input_state` returned, unless a model said it."""

    def probe(self) -> Tensor:
        """Answer to a fixed test image, float32, by which weights are recognised."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> SelectorFeatures:
        """Stay in evaluation mode, whatever is asked for."""
        super().train(False)
        return self

    @contextmanager
    def tap(
        self, model: DualEncoder, on_features: Callable[[Tensor], None]
    ) -> Iterator[None]:
        """Report the features of every image pass of ``model`` inside the block.

        :param model: encodes images while the context is open.
        :param on_features: called once per pass with ``(B, F)``, before the
            first residual block of the tower has ended.
        """
        root, _ = image_root(model)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            images = args[0] if args else kwargs["pixel_values"]
            on_features(self(images.detach()))

        handle = root.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class _Reached(Exception):
    """Carries the activations out of a tower that need not go on."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _stop_after(module: nn.Module, args: Any, output: Any) -> None:
    # earlier transformers releases return a tuple
    raise _Reached(output[0] if isinstance(output, tuple) else output)


def _stop_before(module: nn.Module, args: Any) -> None:
    raise _Reached(args[0])


def image_root(model: DualEncoder) -> tuple[Any, str]:
    """Return a model's image tower and the name of its input."""
    if model.config["library"] == "transformers":
        return model.clip.vision_model, "pixel_values"
    return model.clip.visual, "x"


def _find_tap(model: DualEncoder) -> tuple[nn.Module, list[nn.Module], Any]:
    """Find the module at which the features are taken, and what follows it.

    :return: the module, its later siblings, and the first block's view (None
        for convolutional towers, whose features are the module's input).
    """
    try:
        views = model.blocks("image")
    except ValueError:
        root, _ = image_root(model)
        trunk = getattr(root, "trunk", root)
        for name in _FIRST_STAGES:
            stage = getattr(trunk, name, None)
            if name in ("stages", "blocks") and stage is not None and len(stage):
                return stage[0], list(stage)[1:], None
            if stage is not None:
                return stage, [], None
        raise ValueError(
            f"The image tower ({type(trunk).__name__}) has neither plain residual"
            f" blocks nor a first stage named {', '.join(_FIRST_STAGES)}; use"
            " extractor='alexnet' with local weights, or give a SelectorFeatures"
            " module of your own."
        ) from None
    return views[0].module, [view.module for view in views[1:]], views[0]


@contextmanager
def _without_hooks(root: nn.Module) -> Iterator[None]:
    """Take the hooks off all modules: a copy made inside has no adapters."""
    kept = [
        (m, name, m.__dict__[name])
        for m in root.modules()
        for name in (*_HOOKS, *(f"{h}_with_kwargs" for h in _HOOKS))
        if m.__dict__.get(name)
    ]
    for module, name, _ in kept:
        module.__dict__[name] = OrderedDict()
    try:
        yield
    finally:
        for module, name, hooks in kept:
            module.__dict__[name] = hooks


def fixed_images(size: tuple[int, int]) -> Tensor:
    """Return two fixed wave patterns ``(2, 3, H, W)``, free of random numbers."""
    rows = torch.arange(size[0], dtype=torch.float64).view(1, -1, 1) / size[0]
    columns = torch.arange(size[1], dtype=torch.float64).view(1, 1, -1) / size[1]
    phase = torch.arange(3, dtype=torch.float64).view(-1, 1, 1)
    waves = [
        torch.sin(5 * rows + 9 * columns + phase),
        torch.cos(17 * rows * columns - 2 * phase),
    ]
    return torch.stack(waves).float()


class ModelFeatures(SelectorFeatures):
    """A model's own early image features, frozen when this object is built.

    Transformer towers: the mean over all tokens, class token included, after
    the first block. Convolutional towers: the output of the stem (the input
    of the first stage), averaged over the cells of a 4 x 4 grid, channels
    first. On the embedded emoji the grid told 9 groups apart with twice the
    accuracy of plain averages.

    Holds a float32 copy of the layers that are needed (7.7 million numbers
    for ViT-B/16), in evaluation mode, without hooks and adapters. So neither
    training nor adapters change the features, and no reference to the model
    is kept. :meth:`tap` reads them from the model's own pass instead, at no
    cost, as long as its early layers still equal the copy; it reads them
    beside a mixture adapter, before the adapter's output is added.

    :param model: its early layers are copied; it is left as it is.
    :param pooling: ``"mean"``; ``"mean_std"``, which adds the standard
        deviations over tokens or places (2C features); ``"none"``, all
        tokens or places, as published (151,296 features for ViT-B/16, so
        autoencoders are large); or ``"grid"`` (convolutional only, 16C
        features). None: mean or grid, see above.
    :raises ValueError: for an unknown pooling, for ``"grid"`` with a
        transformer, and for towers without a known beginning.
    """

    name = "model"
    standardize = True

    def __init__(self, model: DualEncoder, pooling: str | None = None) -> None:
        super().__init__()
        if not isinstance(model, DualEncoder):
            raise TypeError(
                f"The model is a {type(model).__name__}; give a DualEncoder, made by"
                " create_dual_encoder."
            )
        root, self._input = image_root(model)
        stage, later, view = _find_tap(model)
        if pooling is None:
            pooling = "mean" if view is not None else "grid"
        allowed = POOLINGS if view is None else POOLINGS[:-1]
        if pooling not in allowed:
            raise ValueError(
                f"pooling={pooling!r} is unknown for this image tower; use one of"
                f" {', '.join(allowed)}."
            )
        self.pooling = pooling
        names = {id(m): name for name, m in root.named_modules()}
        self._path = names[id(stage)]
        self._is_block = view is not None
        self._batch_first = view is None or view.batch_first
        size = model.image_size
        self._size = (size, size) if isinstance(size, int) else size
        replaced = later if view is not None else [stage, *later]
        memo: dict[int, Any] = {id(m): nn.Identity() for m in replaced}
        with _without_hooks(root):
            tower = copy.deepcopy(root, memo)
        self.tower = tower.float().requires_grad_(False).eval()
        module = self.tower.get_submodule(self._path)
        if self._is_block:
            module.register_forward_hook(_stop_after)
        else:
            module.register_forward_pre_hook(_stop_before)
        self._drop_unused()
        self.feature_size = self.probe().shape[0] // 2
        # then a later model is no source for them any more
        self.was_trainable = any(
            p.requires_grad
            for name, p in root.named_parameters()
            if name in dict(self.tower.named_parameters())
        )
        self._verified: tuple[Any, ...] = ()

    def _drop_unused(self) -> None:
        """Remove children with parameters that the features do not need."""
        trunk = getattr(self.tower, "trunk", self.tower)
        parents = [self.tower, trunk]
        if self._is_block:
            parents.append(self.tower.get_submodule(self._path))
        called: set[int] = set()
        handles = [
            child.register_forward_pre_hook(lambda m, args: called.add(id(m)))
            for parent in parents
            for child in parent.children()
        ]
        expected = self.probe()
        for handle in handles:
            handle.remove()
        dropped = [
            (parent, name, child)
            for parent in parents
            for name, child in list(parent.named_children())
            if id(child) not in called and any(True for _ in child.parameters())
        ]
        for parent, name, _ in dropped:
            setattr(parent, name, nn.Identity())
        try:
            same = torch.equal(expected, self.probe())
        except (AttributeError, RuntimeError, TypeError):
            same = False
        if not same:  # parts that are used without being called
            for parent, name, child in dropped:
                setattr(parent, name, child)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the features with the frozen copy.

        :param images: float, ``(B, 3, H, W)``, as for the model.
        :return: float32, ``(B, F)``, without gradient.
        :raises ValueError: if the tower cannot take the images.
        """
        try:
            with torch.autocast(images.device.type, enabled=False):
                self.tower(**{self._input: images.float()})
        except _Reached as reached:
            return self._pool(reached.hidden)
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"Images came as {tuple(images.shape)} and cannot be read by the early"
                f" layers ({error}); use model.transform(train)."
            ) from error
        raise RuntimeError(f"The image tower never reached {self._path}.")

    def _pool(self, hidden: Tensor) -> Tensor:
        hidden = hidden.detach().float()
        if not self._is_block:
            if self.pooling == "grid":
                return F.adaptive_avg_pool2d(hidden, GRID).flatten(1)
            hidden = hidden.flatten(2).transpose(1, 2)
        elif not self._batch_first:
            hidden = hidden.transpose(0, 1)
        if self.pooling == "none":
            return self._all_of(hidden)
        mean = hidden.mean(1)
        spread = [hidden.std(1, unbiased=False)] if self.pooling == "mean_std" else []
        return torch.cat([mean, *spread], dim=1)

    def _all_of(self, hidden: Tensor) -> Tensor:
        """Flatten tokens ``(B, L, C)``; refuse images of another size."""
        count, width = hidden.shape[1:]
        expected = getattr(self, "feature_size", count * width) // width
        if count != expected:
            raise ValueError(
                f"The images give {count} tokens instead of {expected}; with pooling="
                f"'none' all must have {self._size[0]} x {self._size[1]} pixels."
            )
        return hidden.flatten(1)

    def settings(self) -> dict[str, Any]:
        """Return the pooling."""
        return {"pooling": self.pooling}

    def probe(self) -> Tensor:
        """Return the features of two fixed images, float32 ``(2F,)``."""
        device = next(self.tower.parameters()).device
        return self(fixed_images(self._size).to(device)).flatten()

    def equals(self, model: DualEncoder) -> bool:
        """Tell whether a model's early layers still hold the copied values.

        Frozen tensors that were found equal before are not read again as
        long as their addresses and version counters stay the same.
        """
        live = image_root(model)[0].state_dict(keep_vars=True)
        ours = self.tower.state_dict()
        if any(name not in live for name in ours):
            return False
        found = [live[name] for name in ours]
        key = tuple(
            (t.data_ptr(), -1 if t.is_inference() else t._version) for t in found
        )
        if key == self._verified and not any(t.requires_grad for t in found):
            return True
        same = all(
            theirs.device == own.device
            and theirs.shape == own.shape
            and torch.equal(theirs.detach().to(own.dtype), own)
            for theirs, own in zip(found, ours.values(), strict=True)
        )
        self._verified = key if same else ()
        return same

    def _can_share(self, model: DualEncoder) -> bool:
        """Whether the model's own pass yields these features."""
        root, _ = image_root(model)
        if root.training or not self.equals(model):
            return False
        stage, _, view = _find_tap(model)
        free: set[tuple[int, str]] = {(id(root), name) for name in _HOOKS}
        if view is not None:
            # an adapter listens here and adds its output later
            free |= {(id(view.norm2), "_forward_pre_hooks")}
            free |= {(id(view.mlp_out), "_forward_hooks")}
            free |= {(id(stage), "_forward_hooks")}
        else:
            free |= {(id(stage), name) for name in _HOOKS}
        ours = {name for name, _ in self.tower.named_modules()}
        others = any(
            getattr(module, hooks) and (id(module), hooks) not in free
            for name, module in root.named_modules()
            if name in ours
            for hooks in _HOOKS
        )
        return not others or self._agrees(model)

    def _agrees(self, model: DualEncoder) -> bool:
        """Compare the features of the model's own pass for two fixed images."""
        expected = self.probe()

        def stop(features: Tensor) -> None:
            raise _Reached(features)

        images = fixed_images(self._size).to(expected.device)
        kind = expected.device.type
        with (
            self._listen(model, stop),
            torch.no_grad(),
            torch.autocast(kind, enabled=False),
        ):
            try:
                model.encode_image(images)
            except _Reached as reached:
                limit = 1e-3 if model.precision == "fp32" else 2e-2
                off = (reached.hidden.flatten() - expected).norm()
                return bool(off <= limit * expected.norm())
        return False

    @contextmanager
    def tap(
        self, model: DualEncoder, on_features: Callable[[Tensor], None]
    ) -> Iterator[None]:
        """Report the features of every image pass of ``model`` inside the block.

        Read from the pass itself where it computes them (under autocast with
        its rounding); from the frozen copy, at the cost of the early layers,
        when the model is in training mode, or when its early layers or hooks
        on them (a mixture adapter's excepted) changed what they compute.
        """
        if not self._can_share(model):
            with super().tap(model, on_features):
                yield
            return
        with self._listen(model, on_features):
            yield

    @contextmanager
    def _listen(
        self, model: DualEncoder, on_features: Callable[[Tensor], None]
    ) -> Iterator[None]:
        """Report the features of the model's own passes."""
        stage, _, view = _find_tap(model)
        inputs: list[Tensor] = []

        def before(module: nn.Module, args: Any) -> None:
            if view is None:
                on_features(self._pool(args[0]))
            else:
                inputs[:] = [args[0]]

        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            with torch.no_grad():
                hidden = inputs.pop() + output
            on_features(self._pool(hidden))

        entry = stage if view is None else view.norm2
        handles = [entry.register_forward_pre_hook(before, prepend=True)]
        if view is not None:
            handles.append(view.mlp_out.register_forward_hook(after, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_verified": ()}


def all_settings(features: SelectorFeatures) -> dict[str, Any]:
    """Return an extractor's settings, feature size included."""
    return {"feature_size": features.feature_size, **features.settings()}


def check_same_extractor(
    features: SelectorFeatures, settings: dict[str, Any], probe: Tensor, std: Tensor
) -> None:
    """Make sure that autoencoders meet the features they were trained on.

    Rounding passes (16-bit storage, another device), other weights do not.

    :param features: the extractor to check.
    :param settings: ``all_settings`` of the extractor they were trained on.
    :param probe: its answer to the fixed images.
    :param std: deviations by which features are divided, ``(F,)``.
    :raises ValueError: if settings differ, or if the answer is off by more than
        2 % or, for standardised features, 0.1 deviations (root mean square).
    """
    found_settings = all_settings(features)
    if found_settings != settings:
        raise ValueError(
            f"the autoencoders were trained on features with {settings}, the"
            f" extractor has {found_settings}; use the same."
        )
    found, known = features.probe().cpu().double(), probe.cpu().double()
    if features.standardize:
        scale = std.cpu().double().repeat(len(found) // len(std))
        far = bool(((found - known) / scale).square().mean().sqrt() > 0.1)
    else:
        far = bool((found - known).norm() > 0.02 * known.norm())
    if far:
        raise ValueError(
            "the extractor has other weights than the one the autoencoders were"
            " trained on; give the same base model, before any training of its"
            " image tower, or the same AlexNet file."
        )
