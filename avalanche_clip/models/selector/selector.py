"""DDAS: choose a task's router from how well its autoencoder knows an image.

Source: Yu et al., CVPR 2024 (MoE-Adapters, arXiv 2403.11549) and the authors'
code. Per-sample decisions, calibrated thresholds, the comparison of learned
tasks only, and the model's own features are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    require_choice,
    require_same,
)
from avalanche_clip.common.progress import progress
from avalanche_clip.common.randomness import kept_rng, seed_cpu
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.selector.alexnet import AlexNetFeatures
from avalanche_clip.models.selector.decisions import (
    GRANULARITIES,
    Calibration,
    autoencoder_errors,
    choose_routes,
    conformal_threshold,
)
from avalanche_clip.models.selector.features import (
    ModelFeatures,
    SelectorFeatures,
    all_settings,
    check_same_extractor,
)
from avalanche_clip.models.selector.training import (
    FeatureStream,
    SelectorTraining,
    batch_count,
    image_batches,
    images_of,
    initial_autoencoder,
    train_autoencoder,
)

EXTRACTORS = ("model", "alexnet")
#: the authors' constant for AlexNet features (full data)
PUBLISHED_THRESHOLD = 0.065
_SETTINGS = ("hidden", "given_threshold", "threshold_kind", "granularity", "seed")
_BUFFERS = (
    *("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias"),
    *("feature_mean", "feature_std", "calibrated"),
)


class AutoSelector(nn.Module):
    """Send each image to the router of the task that it resembles, or to none.

    With ``a = sigmoid(features)``, every task has an autoencoder Linear(F, h) -
    ReLU - Linear(h, F) - Sigmoid. The smallest mean squared error between its
    output and ``a`` wins (the lowest index on ties). If autoencoder 0, that of
    a reference set, wins, or if the smallest error exceeds the threshold, the
    image is unfamiliar and belongs to the zero-shot model: router id -1.
    Otherwise autoencoder j means router j - 1. None changes once trained.

    With ``extractor="model"`` features are first standardised with the mean and
    deviation of the reference set, dimension by dimension; ``"alexnet"``
    features are taken as they are (original).

    Memory: ``2 F h + F + h`` numbers per autoencoder (buffers), and the frozen
    extractor. Time: one fused pass for all autoencoders.

    :param extractor: ``"model"``, ``"alexnet"``, or a :class:`SelectorFeatures`.
    :param model: source of the early layers; or call :meth:`bind` later.
    :param weights: local AlexNet weights, for ``"alexnet"``.
    :param hidden: width h of the autoencoders.
    :param threshold: largest error of a familiar image; None: 0.065 for
        AlexNet (original), no limit for others until :meth:`calibrate`.
    :param granularity: ``"sample"``: one decision per image; ``"batch"``: one
        for all images of a call, from their mean errors (original).
    :param training: see :class:`SelectorTraining`. None: the authors' for
        AlexNet; for others the same at a constant rate.
    :param seed: of initial weights and orders. Autoencoder i is a function of
        the seed, i and its data; global random generators are left alone.
    :raises ValueError: for a value outside its range, and for ``"alexnet"``
        without weights.
    """

    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    calibrated: Tensor

    def __init__(
        self,
        extractor: str | SelectorFeatures = "model",
        model: DualEncoder | None = None,
        *,
        weights: str | Path | None = None,
        hidden: int = 100,
        threshold: float | None = None,
        granularity: str = "sample",
        training: SelectorTraining | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(extractor, SelectorFeatures):
            require_choice("extractor", extractor, EXTRACTORS)
        require_choice("granularity", granularity, GRANULARITIES)
        if weights is not None and extractor != "alexnet":
            raise ValueError("weights belong to extractor='alexnet' only.")
        if extractor == "alexnet":
            extractor = AlexNetFeatures(weights)
        self.hidden = as_size(hidden, "hidden")
        self.extractor = extractor if isinstance(extractor, str) else extractor.name
        is_alexnet = self.extractor == "alexnet"
        if threshold is None:
            threshold = PUBLISHED_THRESHOLD if is_alexnet else math.inf
        if threshold != math.inf:
            threshold = as_finite(threshold, "threshold", low=0)
        self.given_threshold = threshold
        self.granularity = granularity
        self.seed = seed
        decay = 10 if is_alexnet else None
        self.training_plan = training or SelectorTraining(decay_epochs=decay)
        #: threshold in use: ``"given"``, ``"global"`` or ``"per_task"``
        self.threshold_kind = "given"
        # in a list, so that neither its weights nor its mode belong to this module
        self._extractor: list[SelectorFeatures] = []
        # of what the autoencoders learned: settings, answer, layers if they may change
        self._known: dict[str, Any] = {"settings": None, "probe": torch.empty(0)}
        self._reset(0, 0)
        if not isinstance(extractor, str):
            self._install(extractor)
        if model is not None:
            self.bind(model)

    def _reset(self, count: int, size: int) -> None:
        """Make room for ``count`` autoencoders of ``size`` features."""
        h = self.hidden
        shapes = ((count, h, size), (count, h), (count, size, h), (count, size))
        tasks = torch.full((max(count - 1, 0),), math.nan, dtype=torch.float64)
        values = *map(torch.zeros, shapes), torch.zeros(size), torch.ones(size), tasks
        for name, value in zip(_BUFFERS, values, strict=True):
            self.register_buffer(name, value)

    def bind(self, model: DualEncoder) -> None:
        """Copy a model's early layers as the extractor; later calls do nothing.

        Call it before the model is trained. AlexNet only learns from it how
        the model's images are normalised.

        :param model: the model whose images are routed.
        :raises ValueError: if loaded autoencoders belong to another model.
        """
        if not self._extractor:
            self._install(ModelFeatures(model))
        elif isinstance(self._extractor[0], AlexNetFeatures):
            values = model.config["preprocess_cfg"]
            self._extractor[0].set_input_statistics(values["mean"], values["std"])

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that two runs with the same results share, as plain data."""
        names = ("extractor", "hidden", "granularity", "seed")
        limit = None if math.isinf(self.given_threshold) else self.given_threshold
        plan = asdict(self.training_plan)
        del plan["cache_bytes"]
        return {n: getattr(self, n) for n in names} | {"threshold": limit, **plan}

    def _install(self, features: SelectorFeatures) -> None:
        if self._known["settings"] is None:
            self._reset(0, features.feature_size)
            self.to(features.probe().device)
        else:  # a state was loaded before
            features = features.to(self.encoder_weight.device)
            self._adopt(features, self._known, self.feature_std)
        probe = features.probe().cpu()
        self._known = {"settings": all_settings(features), "probe": probe}
        self._extractor = [features]

    def _adopt(
        self, features: SelectorFeatures, known: dict[str, Any], std: Tensor
    ) -> None:
        """Let an extractor serve loaded autoencoders, or leave it and raise."""
        kept = {k: v.clone() for k, v in features.state_dict().items()}
        layers = known.get("layers")
        try:
            if layers is not None:
                # layers that are never run need not be there
                features.load_state_dict(layers, strict=False)
            check_same_extractor(features, known["settings"], known["probe"], std)
        except (RuntimeError, ValueError) as error:
            features.load_state_dict(kept)
            raise ValueError(f"The state cannot be used here: {error}") from error
        features.was_trainable |= layers is not None

    @property
    def extractor_module(self) -> SelectorFeatures:
        """The frozen extractor; RuntimeError if no model was given yet."""
        if not self._extractor:
            raise RuntimeError("There is no extractor yet; call bind(model) before.")
        return self._extractor[0]

    def features(self, images: Tensor) -> Tensor:
        """Return the frozen features ``(B, F)`` of images ``(B, 3, H, W)``."""
        images = images_of(images).to(self.encoder_weight.device)
        return self.extractor_module(images)  # type: ignore[no-any-return]

    def activations(self, features: Tensor) -> Tensor:
        """Return what the autoencoders see: float32 in (0, 1), ``(B, F)``."""
        features = features.detach().float()
        if self.extractor_module.standardize:
            features = (features - self.feature_mean) / self.feature_std
        return torch.sigmoid(features)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> AutoSelector:
        super()._apply(fn, recurse)
        for features in self._extractor:
            features._apply(fn, recurse)
        return self

    @property
    def num_autoencoders(self) -> int:
        """Number of trained autoencoders, the reference's included."""
        return int(self.encoder_weight.shape[0])

    @property
    def num_tasks(self) -> int:
        """Number of learned tasks; router ids go from 0 to this minus 1."""
        return max(self.num_autoencoders - 1, 0)

    @property
    def autoencoder_size(self) -> int:
        """Numbers per autoencoder: ``2 F h + F + h``."""
        size = self.encoder_weight.shape[2]
        return 2 * size * self.hidden + size + self.hidden

    def fit_reference(self, images: Any, *, deterministic: bool = False) -> None:
        """Train autoencoder 0 on images that stand for everything else.

        With ``extractor="model"`` the mean and deviation of (at most the first
        16,384 of) them standardise all features from then on.

        :param images: float tensor ``(N, 3, H, W)``, or a loader that can be
            iterated again and again, best shuffled; its batches are image
            tensors, tuples that start with the images, or mappings with
            ``"image"``.
        :param deterministic: whether the loader gives the same images in every
            epoch; then features are computed once and kept, as long as they
            fit into ``cache_bytes``. Always so for a tensor.
        :raises ValueError: if there is a reference already, or no image.
        """
        if self.num_autoencoders:
            raise ValueError("The reference exists already; use a new AutoSelector.")
        self._fit(images, deterministic, self.training_plan.reference_iterations)

    def fit_task(self, images: Any, *, deterministic: bool = False) -> int:
        """Train the autoencoder of the next task; earlier ones stay as they are.

        :param images: with ``deterministic`` as for :meth:`fit_reference`.
        :return: the task's id, which is the id of its router.
        :raises ValueError: if there is no reference yet, or no image.
        """
        if not self.num_autoencoders:
            raise ValueError("Call fit_reference before the first fit_task.")
        self._fit(images, deterministic, self.training_plan.task_iterations)
        return self.num_tasks - 1

    def _fit(self, images: Any, deterministic: bool, iterations: int) -> None:
        index = self.num_autoencoders
        source = np.random.SeedSequence([self.seed & (2**63 - 1), index])
        seed = int(source.generate_state(1)[0])
        plan = self.training_plan
        with torch.inference_mode(False), kept_rng():
            seed_cpu(seed)  # loaders and transforms draw from the global ones
            generator = torch.Generator().manual_seed(seed)
            stream = FeatureStream(
                self.features, images, deterministic, plan, generator
            )
            if index == 0 and self.extractor_module.standardize:
                self.feature_mean, self.feature_std = stream.statistics()
            size, device = self.encoder_weight.shape[2], self.encoder_weight.device
            weights = initial_autoencoder(size, self.hidden, generator)
            weights = [weight.to(device) for weight in weights]
            batches = ((e, self.activations(rows)) for e, rows in stream.batches())
            name = f"selector, task {index - 1}" if index else "selector, reference"
            train_autoencoder(weights, batches, iterations, plan, name)
        for name, weight in zip(_BUFFERS, weights, strict=False):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, weight.detach()[None]]))
        if index:
            self.calibrated = nn.functional.pad(self.calibrated, (0, 1), value=math.nan)

    def errors(self, images: Tensor) -> Tensor:
        """Return the reconstruction errors of all learned autoencoders.

        :param images: preprocessed, float, ``(B, 3, H, W)``.
        :return: float32 ``(B, T + 1)``, column 0 the reference.
        """
        return self.errors_of(self.features(images))

    @torch.no_grad()
    def errors_of(self, features: Tensor) -> Tensor:
        """Return the errors ``(B, T + 1)`` of features ``(B, F)``.

        :raises ValueError: if nothing was learned yet, or for another size.
        """
        count, _, size = self.encoder_weight.shape
        if count == 0:
            raise ValueError("There is no autoencoder yet; call fit_reference.")
        if features.ndim != 2 or features.shape[1] != size:
            raise ValueError(f"Features are {tuple(features.shape)}; give (B, {size}).")
        with torch.autocast(features.device.type, enabled=False):
            weights = [getattr(self, name) for name in _BUFFERS[:4]]
            return autoencoder_errors(self.activations(features), *weights)

    def route(self, images_or_errors: Tensor, granularity: str | None = None) -> Tensor:
        """Choose the router of each image.

        :param images_or_errors: images ``(B, 3, H, W)``, or an error matrix
            ``(B, T + 1)`` as :meth:`errors` returns it.
        :param granularity: in place of the selector's own.
        :return: long ``(B,)``: -1 (zero-shot) or a task id.
        :raises ValueError: for another shape.
        """
        errors = images_or_errors
        if errors.ndim == 4:
            errors = self.errors(errors)
        learned, got = self.num_autoencoders, tuple(errors.shape)
        if errors.ndim != 2 or learned not in (0, errors.shape[1]):
            raise ValueError(
                f"route takes images (B, 3, H, W) or errors (B, {learned}), not {got}."
            )
        granularity = granularity or self.granularity
        return choose_routes(errors, self._limits(got[1]), granularity)

    @property
    def threshold(self) -> float | tuple[float, ...]:
        """The threshold in use; one per task after ``calibrate(per_task=True)``."""
        limits = self._limits(max(self.num_autoencoders, 2))[1:].tolist()
        return tuple(limits) if self.threshold_kind == "per_task" else float(limits[0])

    def _limits(self, count: int) -> Tensor:
        """Return the largest familiar error for each of ``count`` columns."""
        known = self.calibrated[~self.calibrated.isnan()]
        given = self.threshold_kind == "given" or not len(known)
        largest = self.given_threshold if given else float(known.max())
        limits = self.calibrated.new_full((count,), largest)
        if not given and self.threshold_kind == "per_task":
            limits[1:] = self.calibrated.nan_to_num(largest)
        return limits

    def calibrate(
        self,
        held_out: Mapping[int, Any] | Sequence[Any],
        quantile: float = 0.95,
        *,
        per_task: bool = False,
    ) -> Calibration:
        """Set the threshold from held-out images of learned tasks.

        A task's threshold is the ``ceil((n + 1) quantile)``-th smallest error
        (at most the largest) of its own autoencoder on ``n`` held-out images, or
        batches with ``granularity="batch"``: a new image of the task exceeds it
        with a probability of about ``1 - quantile`` (split conformal). Errors never
        change, so tasks may be calibrated one after the other.

        :param held_out: task id -> images (as for :meth:`fit_reference`) that
            the autoencoder was not trained on; a sequence counts from task 0.
        :param quantile: share of a task's images to be kept, in (0, 1].
        :param per_task: use each task's own threshold; False: the largest for
            all (the form of the original). Tasks without one use the largest.
        :return: both, and the given one.
        :raises ValueError: for an unknown task, no images, or a bad quantile.
        """
        quantile = as_finite(quantile, "quantile", above=0, high=1)
        found = self.calibrated.clone()
        pairs = held_out if isinstance(held_out, Mapping) else dict(enumerate(held_out))
        learned = range(self.num_tasks)
        if not pairs or not set(learned) >= pairs.keys():
            raise ValueError(
                f"Images came for the tasks {list(pairs)}, learned are {list(learned)};"
                " give at least one learned task."
            )
        for task, images in pairs.items():
            size = self.training_plan.batch_size
            batches = progress(
                image_batches(images, size),
                f"selector, threshold of task {task}",
                batch_count(images, size),
            )
            own = [self.errors(x)[:, task + 1].double() for x in batches if len(x)]
            if self.granularity == "batch":
                own = [errors.mean(0, keepdim=True) for errors in own]
            if not own:
                raise ValueError(f"There are no held-out images for task {task}.")
            found[task] = conformal_threshold(torch.cat(own), quantile)
        self.calibrated = found
        self.threshold_kind = "per_task" if per_task else "global"
        known = {i: v for i, v in enumerate(found.tolist()) if v == v}
        return Calibration(max(known.values()), known, self.given_threshold)

    def get_extra_state(self) -> dict[str, Any]:
        """Return settings as plain data, beside the tensors."""
        known = {"layers": None, "input": None, **self._known}
        for source in self._extractor:
            known["input"] = source.input_state()
            if source.was_trainable:
                known["layers"] = dict(source.state_dict())
        settings = {n: getattr(self, n) for n in ("extractor", *_SETTINGS)}
        tasks = list(range(self.num_tasks))
        return {**settings, **known, "learned_tasks": tasks}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the settings of a state."""
        for name in _SETTINGS:
            setattr(self, name, state[name])
        if state["settings"] is not None:
            self._known = {key: state[key] for key in ("settings", "probe")}
        if not self._extractor:
            self._known["layers"] = state["layers"]
        elif state.get("input") is not None:
            self._extractor[0].load_input_state(state["input"])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Check that a state fits, and make room for its autoencoders."""
        extra = state_dict.get(prefix + "_extra_state")
        if extra is not None:
            self._check_state(extra, state_dict, prefix)
            count, _, size = state_dict[prefix + "encoder_weight"].shape
            device = self.encoder_weight.device
            early = extra["settings"] is None and self._extractor  # had no model yet
            self._reset(count, self.extractor_module.feature_size if early else size)
            self.to(device)
            if early:
                state_dict.update((prefix + n, getattr(self, n)) for n in _BUFFERS)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_state(self, extra: Any, state: dict[str, Any], prefix: str) -> None:
        for name in ("extractor", "hidden"):
            what = f"The state belongs to an AutoSelector whose {name}"
            require_same(what, extra[name], getattr(self, name), "build the same")
        if self._extractor and extra["settings"] is not None:
            self._adopt(self._extractor[0], extra, state[prefix + "feature_std"])

    def extra_repr(self) -> str:
        """Describe the selector in one line."""
        return f"extractor={self.extractor!r}, tasks={self.num_tasks}"
