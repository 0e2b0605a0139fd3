"""Which routers evaluate a batch: the evaluation side of MoEAdaptersPlugin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import require_choice
from avalanche_clip.models.selector.selector import AutoSelector
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.visits import Step, belongs

EVAL_ROUTERS = ("auto", "own", "last", "zero-shot")
ZERO_SHOT = -1
"""Router id under which the mixtures are skipped: the model before the stream."""

EvalRouter = str | Callable[[Any], int | Tensor]


class RoutedEvaluation(MethodPlugin):
    """Route every evaluation batch, and put the router of training back."""

    selector: Any
    """What the plugin was given."""
    shared_router: bool
    """Whether all experiences train router 0."""
    router_for_eval: EvalRouter
    """One of :data:`EVAL_ROUTERS`, or a callable."""

    def __init__(self) -> None:
        super().__init__()
        if not callable(self.router_for_eval):
            require_choice("router_for_eval", self.router_for_eval, EVAL_ROUTERS)
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to an earlier run with this plugin."""
        #: the selector of the run, None without one
        self.auto_selector: AutoSelector | None = None
        #: router of each experience that was begun, by its classes or place
        self.routers: dict[str, int] = {}
        #: the step that each of these routers was made for
        self.owners: dict[str, Step] = {}
        #: ``[stream][f"{trained},{experience}"][router]`` -> images: how the images of
        #: a complete evaluation were routed, after ``trained`` experiences
        self.routing: dict[str, dict[str, dict[str, int]]] = {}
        self._steps: int | None = None  # length of the training stream
        self._routes: Tensor | None = None  # of the running evaluation batch
        self._route = ExitStack()  # back to the router of training

    def _moe(self, strategy: Any) -> Any:
        return strategy.model.moe_adapters

    def _key(self, experience: Any) -> str:
        """What tells experiences of all streams of a benchmark apart."""
        ids = getattr(experience, "class_ids", None)
        if ids is not None:
            return "classes " + ",".join(str(i) for i in ids)
        return f"step {experience.logging().current_experience}"

    def _name(self, strategy: Any) -> str:
        """Name of the running step's router.

        Steps of other streams or benchmarks with the same classes or place are
        other steps, and get names of their own.
        """
        base, step = self._key(strategy.experience), strategy.visits.current
        name, number = base, 1
        while self.owners.get(name, step) != step:
            number += 1
            name = f"{base} ({number})"
        return name

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start to count how the images of this experience are routed."""
        if not strategy.in_training:
            self._table(strategy).clear()

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Count the routes of the batch."""
        if not strategy.in_training and self._routes is not None:
            table = self._table(strategy)
            for router, images in Counter(self._routes.tolist()).items():
                table[str(router)] = table.get(str(router), 0) + images
        self._routes = None

    def class_logits(self, strategy: Any, image_features: Tensor) -> Tensor | None:
        """Compare images with the class vectors of their own routers.

        :param strategy: with a ``ClassNameTemplate``.
        :param image_features: ``(B, D)``.
        :return: ``(B, C)``; None without adapters in the text tower.
        """
        moe, variants = self._moe(strategy), self.image_variants(strategy)
        if variants is None:
            return None
        return strategy.variant_logits(
            image_features,
            variants,
            context=partial(self.variant_context, strategy),
            fingerprint=partial(moe.fingerprint, "text"),
        )

    def check_suites(self, strategy: Any, benchmark: Any) -> None:
        """Refuse a rule of one's own, which may read more than images.

        Images of a suite pass the routers of ``router_for_eval``, each by itself,
        also where the selector decides per batch; ``"own"`` is zero-shot there, or the
        newest with captions, as for data that were not trained on. Each is compared
        with texts, captions too, of its own router.

        :raises ValueError: if ``router_for_eval`` is a callable.
        """
        if callable(self.router_for_eval):
            raise ValueError(
                f"router_for_eval={self.router_for_eval!r} is a rule for batches of a "
                f"stream, which suites have not; give one of {EVAL_ROUTERS}, or leave "
                "suites out."
            )

    def image_variants(self, strategy: Any) -> Tensor | None:
        """Routers of the batch; None without adapters in the text tower."""
        return self._routes if "text" in self._moe(strategy).towers else None

    def variant_context(
        self, strategy: Any, variant: int
    ) -> AbstractContextManager[Any]:
        """Let texts pass a router."""
        moe = self._moe(strategy)
        return moe.using_router(text=variant) if "text" in moe.towers else nullcontext()  # type: ignore[no-any-return]

    def route_batch(self, strategy: Any, batch: Any) -> None:
        """Choose the routers of an evaluation batch as the setting asks for."""
        if strategy.is_training or batch is not strategy.mb_x:
            return
        moe, chosen = self._moe(strategy), self.auto_selector
        size, device = len(batch["image"]), batch["image"].device
        self._route.enter_context(moe.using_router())
        if self.router_for_eval == "auto" and chosen is not None and chosen.num_tasks:
            with strategy.autocast():
                how = "sample" if strategy.experience is None else None
                routes: int | Tensor = chosen.route(batch["image"], how)
        else:
            routes = self._rule(strategy)
        self._routes = _per_image(routes, size, device)
        ids: dict[str, Any] = {"image": self._routes}
        if strategy.reads_captions:
            ids["text"] = _most_frequent(self._routes)
        moe.set_router(**{t: ids[t] for t in moe.towers if t in ids})

    def end_route(self, strategy: Any) -> None:
        """Put the router of training back."""
        self._route.close()

    def _rule(self, strategy: Any) -> int | Tensor:
        """Router of an evaluation batch that no selector decides about."""
        if callable(self.router_for_eval):
            return self.router_for_eval(strategy)
        rule = self.router_for_eval
        if rule == "zero-shot" or (rule == "auto" and self.selector is not None):
            return ZERO_SHOT
        moe = self._moe(strategy)
        last = moe.active_router
        if not self.routers:  # a stream not begun, perhaps with adapters of another one
            last = moe.learned[-1] if moe.learned else ZERO_SHOT
        return self._own(strategy, last) if rule == "own" else last

    def _own(self, strategy: Any, last: int) -> int:
        """Router that was trained on the evaluated experience."""
        if self.shared_router:
            return last
        experience = strategy.experience
        if experience is None:  # of a suite
            return last if strategy.reads_captions else ZERO_SHOT
        if getattr(experience, "class_ids", None) is None:
            stream = getattr(experience, "_origin_stream", None)
            if stream is None or len(stream) != self._steps:
                return last  # a gallery of all steps, for example
        base = self._key(experience)
        names = [n for n in self.routers if n == base or n.startswith(f"{base} (")]
        if len(names) > 1:  # steps of several streams or benchmarks
            benchmark = experience.logging().origin_stream.benchmark
            names = [n for n in names if belongs(self.owners[n], benchmark)]
        return self.routers[names[0]] if names else ZERO_SHOT

    def _table(self, strategy: Any) -> dict[str, int]:
        experience = strategy.experience
        name = getattr(getattr(experience, "_origin_stream", None), "name", "")
        stream = self.routing.setdefault(name, {})
        trained = strategy.clock.train_exp_counter
        key = f"{trained},{experience.current_experience}"
        return stream.setdefault(key, {})


def _per_image(rule: int | Tensor, size: int, device: Any) -> Tensor:
    """Router ids of a batch, int64 ``(B,)``."""
    ids = torch.as_tensor(rule, device=device)
    if ids.ndim == 0:
        ids = ids.expand(size)
    if ids.shape != (size,) or ids.is_floating_point() or ids.dtype is torch.bool:
        raise ValueError(
            f"router_for_eval returned {ids.dtype} of shape {tuple(ids.shape)} for "
            f"{size} images; return an int, or a LongTensor with one id per image."
        )
    return ids.long()


def _most_frequent(routes: Tensor) -> int:
    """The id that occurs most often, the lowest of several.

    >>> _most_frequent(torch.tensor([2, 0, 2, -1, 0]))
    0
    """
    ids, counts = torch.unique(routes, return_counts=True)
    return int(ids[int(counts.cpu().argmax())]) if len(ids) else ZERO_SHOT
