"""Mixture-of-experts adapters that choose their router themselves.

Source: Yu et al., "Boosting Continual Learning of Vision-Language Models via
Mixture-of-Experts Adapters", CVPR 2024 (arXiv 2403.11549), and the authors'
released code. That code decides once per evaluation batch and compares
autoencoders of tasks not learned yet; here the default decides per image, among
learned tasks. It drops the balance loss, which is an option here. Routers for
pairs of images and captions are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from typing import Any

from avalanche.benchmarks.scenarios.online import OnlineCLExperience

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.items import concatenate
from avalanche_clip.benchmarks.streams.merged import counterparts
from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    require_choice,
    require_same,
    require_type,
)
from avalanche_clip.common.progress import say
from avalanche_clip.common.randomness import seeded
from avalanche_clip.models.moe.adapters import attach_moe_adapters
from avalanche_clip.models.moe.mixture import NUM_EXPERTS, RANKINGS
from avalanche_clip.models.peft.attached import attachment
from avalanche_clip.models.selector.selector import EXTRACTORS, AutoSelector
from avalanche_clip.training.methods.moe_adapters.evaluation import (
    EvalRouter,
    RoutedEvaluation,
)
from avalanche_clip.training.methods.moe_adapters.selector_data import (
    REFERENCE_NUMBER,
    ImagePasses,
    selector_images,
)
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.visits import read_step


@dataclass(eq=False, repr=False)
class MoEAdaptersPlugin(RoutedEvaluation, supports_distributed=True):
    """Train a pool of experts with a router per experience; pick routers by image.

    Every block of both towers gets a mixture of small experts beside its MLP
    (:func:`attach_moe_adapters`); all weights of the model itself are frozen
    for good. In an experience the experts that are not frozen and one new
    router are trained; then the experts that most training rows kept are
    frozen, per block. An experience that comes again goes on with its router.

    In evaluation each image is encoded with the router that ``selector``
    chooses from its early features: that of the experience it looks like, or
    none at all (zero-shot) if it looks like the reference images or like
    nothing known. Class prompts are encoded once per router that occurs
    (``ClassNameTemplate``). For pairs (``ContrastiveTemplate``) the captions of
    a batch share one router, the most frequent one among its images (the lowest
    of several): a caption must not learn from its own image. A batch whose
    images are of one step is so treated alike; for galleries that mix steps
    choose ``router_for_eval="last"``. Evaluation makes no router, counts
    nothing, and puts the router of training back, after errors too.

    Memory: the adapters, and the selector's autoencoders with a copy of the
    early image layers. Time: the mixtures; per experience the training of one
    autoencoder on early features, booked as ``"search"`` by the share of the
    image tower that it runs.

    :param adapters: options of :func:`attach_moe_adapters`; None for the
        paper's, or for a model that already has adapters.
    :param selector: None for no selection; ``"model"`` or ``"alexnet"``; or an
        :class:`AutoSelector` with other settings, which has learned no task.
    :param reference_images: what index 0 of the selector learns: any source of
        :class:`ReferenceImages`; one with a transform of its own keeps it.
        Needed with a selector that has not seen any.
    :param selector_transform: how the selector sees the images it learns:
        ``"train"`` (original), new augmentations in each of its steps; or
        ``"eval"``, as in evaluation, whose features are computed once.
    :param calibration: name of a stream with held-out images, one experience
        per training experience, from which the selector's threshold is taken
        after each task; None keeps the selector's own.
    :param freeze: whether experts are frozen (False: the paper's ablation).
    :param count: experts ranked first per block and experience.
    :param rank_over: ``"all"`` ranks frozen ones too (original), so that fewer
        than ``count`` may be added; or ``"unfrozen"``.
    :param shared_router: all experiences train router 0 (class-incremental
        form). Not with a selector.
    :param balance_weight: of the balance loss of all mixtures, ``>= 0``; the
        original does not use it. With several processes, or a batch in parts
        (``accumulation_steps``), it is the mean of their losses.
    :param router_for_eval: ``"auto"``: the selector's choice; without one the
        newest router, since nothing tells experiences apart. ``"own"``: that of
        the evaluated experience, zero-shot if it was not trained on;
        ``"last"``: the newest; ``"zero-shot"``; or a callable that takes the
        strategy, before the forward pass of a batch, and returns an id or one
        per image ``(B,)``, -1 for zero-shot. Before the first experience all
        are zero-shot.
    :raises ValueError: for a value outside its range; for a model without
        residual attention blocks; together with plugins that replace the
        weights by earlier or random ones.
    """

    routes_batches = True
    closes_last = True
    excludes = {
        "starts_elsewhere": (
            "keeps frozen experts, but {} replaces them with the weights before a step"
        )
    }

    adapters: Mapping[str, Any] | None = None
    _: KW_ONLY
    selector: Any = None
    reference_images: Any = None
    selector_transform: str = "train"
    calibration: str | None = None
    freeze: bool = True
    count: int = 2
    rank_over: str = "all"
    shared_router: bool = False
    balance_weight: float = 0.0
    router_for_eval: EvalRouter = "auto"

    def __post_init__(self) -> None:
        super().__init__()
        self.count = as_size(self.count, "count", least=0)
        require_choice("rank_over", self.rank_over, RANKINGS)
        as_finite(self.balance_weight, "balance_weight", low=0)
        require_choice("selector_transform", self.selector_transform, ("train", "eval"))
        self._check_selector()
        self.adapters = None if self.adapters is None else dict(self.adapters)
        self._strategy: Any = None

    def _check_selector(self) -> None:
        if self.selector is None:
            unused = {
                "reference_images": self.reference_images is not None,
                "selector_transform": self.selector_transform != "train",
                "calibration": self.calibration is not None,
            }
            for name, given in unused.items():
                if given:
                    raise ValueError(
                        f"{name} is for a selector, but selector=None; give 'model', "
                        "'alexnet' or an AutoSelector."
                    )
            return
        known = getattr(self.selector, "num_autoencoders", 0)
        if self.reference_images is None and not known:
            raise ValueError(
                "A selector needs reference_images: what it shall take for unfamiliar, "
                "such as images like those of pretraining."
            )
        if isinstance(self.selector, str):
            if self.selector == "alexnet":
                AutoSelector(self.selector)  # says that local weights are needed
            require_choice("selector", self.selector, EXTRACTORS)
        else:
            kinds = f"give None, one of {EXTRACTORS}, or an AutoSelector"
            require_type(self.selector, AutoSelector, "selector", kinds)
        if self.shared_router:
            raise ValueError(
                "With shared_router=True there is one router, nothing to select; use "
                "selector=None."
            )

    # -------------------------------------------------------------- attaching
    def check_compatible(self, strategy: Any) -> None:
        """Attach the adapters, so that the strategy trains them only.

        :raises ValueError: see the class.
        """
        there = attachment(strategy.model, "moe_adapters") is not None
        if there and self._strategy is strategy:
            return  # asked again, for a plugin that was added later
        self._forget()
        self._strategy = strategy
        # All else is checked first: a refused model has no adapters.
        chosen = self._checked_selector(strategy)
        self._attach(strategy)
        self._moe(strategy).track_balance = self.balance_weight > 0
        self.auto_selector = chosen

    def _checked_selector(self, strategy: Any) -> AutoSelector | None:
        """Check what depends on the adapters, there or not, and make the selector."""
        moe = attachment(strategy.model, "moe_adapters")
        if moe is None:
            experts, learned = (self.adapters or {}).get("num_experts", NUM_EXPERTS), 0
        else:
            experts = min(adapter.num_experts for adapter in moe.adapters())
            learned = len(moe.learned)
        if self.freeze and self.count > experts:
            raise ValueError(
                f"count={self.count} exceeds num_experts={experts}; choose count "
                "<= num_experts, or freeze=False."
            )
        chosen = self.selector
        if isinstance(chosen, str):
            chosen = AutoSelector(chosen, seed=strategy.seed)
        if chosen is not None and chosen.num_tasks != learned:
            raise ValueError(
                f"The selector knows {chosen.num_tasks} tasks, the model's adapters "
                f"{learned}; give a selector and adapters of one run."
            )
        return chosen

    def _attach(self, strategy: Any) -> None:
        model = strategy.model
        if attachment(model, "moe_adapters") is not None:
            if self.adapters is not None:
                raise ValueError(
                    "The model already has adapters, so options for new ones have no "
                    "effect; leave 'adapters' out, or detach the old ones."
                )
            return
        # Initial weights depend on the seed of the run only.
        with seeded(strategy.seed & (2**63 - 1)):
            attach_moe_adapters(model, **(self.adapters or {}))
        strategy.make_optimizer(reset_optimizer_state=True)
        # What is frozen from the start needs no place in checkpoints.
        strategy.groups.known = set(optim.trainable(model))

    # --------------------------------------------------------------- training
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Activate the experience's router, before the optimiser is rebuilt."""
        experience = strategy.experience
        if isinstance(experience, OnlineCLExperience):
            raise ValueError(
                "MoEAdaptersPlugin learns a router per step and freezes experts at its "
                "end, but an online stream cuts steps into pieces; train on the steps "
                "of the original stream."
            )
        moe = self._moe(strategy)
        stream = getattr(experience, "_origin_stream", None)
        self._steps = None if stream is None else len(stream)
        key = self._name(strategy)
        router = 0 if self.shared_router else self.routers.get(key)
        self.routers[key] = moe.start_task(router)
        self.owners[key] = strategy.visits.current
        # Only the step's own forward pass counts, see before_forward.
        moe.counting = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Train the selector on the images of a new experience."""
        chosen = self.auto_selector
        if chosen is None:
            return
        self._prepare_selector(strategy, kwargs)
        router = self._moe(strategy).active_router
        if chosen.num_tasks > router:  # a known or resumed experience
            return
        dataset = strategy.experience.dataset
        plan, size = chosen.training_plan, chosen.training_plan.batch_size
        how = self.selector_transform
        loader = ImagePasses(strategy, dataset, size, kwargs, transform=how)
        task = chosen.fit_task(loader, deterministic=loader.deterministic)
        if task != router:
            raise ValueError(
                f"The selector numbers this experience {task}, the adapters "
                f"{router}; give a selector and adapters of one run."
            )
        self._book(strategy, loader, plan.task_iterations)
        if self.calibration is not None:
            held_out = self._held_out(strategy)
            images = ImagePasses(strategy, held_out, strategy.eval_mb_size, kwargs)
            chosen.calibrate({task: images})
            self._book(strategy, images, 0)

    def _prepare_selector(self, strategy: Any, options: dict[str, Any]) -> None:
        """Copy the early layers, and learn the reference images once."""
        chosen = self.auto_selector
        assert chosen is not None
        chosen.bind(strategy.model)
        chosen.to(strategy.device)
        if chosen.num_autoencoders:
            return
        plan = chosen.training_plan
        say(
            f"Selector: {plan.reference_iterations:,} steps of {plan.batch_size} "
            f"reference images, then {plan.task_iterations:,} for each task, through "
            "the early layers; SelectorTraining makes it shorter."
        )
        loader = ImagePasses(
            strategy,
            self.reference_images,
            plan.batch_size,
            options,
            transform=self.selector_transform,
            experience=REFERENCE_NUMBER,
        )
        chosen.fit_reference(loader, deterministic=loader.deterministic)
        self._book(strategy, loader, plan.reference_iterations)

    def _held_out(self, strategy: Any) -> Any:
        """Images of the running experience that are not trained on."""
        name, experience = self.calibration, strategy.experience.logging()
        stream = getattr(experience, "_origin_stream", None)
        streams = getattr(getattr(stream, "benchmark", None), "streams", {})
        own = counterparts(experience, streams.get(name, ()))
        if not own:
            raise ValueError(
                f"calibration={name!r} needs a stream of that name with one experience "
                f"per training experience; the benchmark has {sorted(streams)}. Make "
                "one with split_validation, or use calibration=None."
            )
        return concatenate([e.dataset for e in own]).eval()

    def _book(self, strategy: Any, loader: Any, iterations: int) -> None:
        """Account for the passes that the selector has just made."""
        assert self.auto_selector is not None
        images = selector_images(self.auto_selector, strategy.model, loader, iterations)
        strategy.compute.spend("search", images=images, texts=0)  # type: ignore[arg-type]

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Count the experts that this step's own rows keep."""
        self._moe(strategy).counting = True

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Stop before other plugins' passes, or those of gradient accumulation.

        Counters of all processes are added up, so that a checkpoint of one of
        them holds all.
        """
        moe = self._moe(strategy)
        moe.counting = False
        moe.share_counts()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the balance loss."""
        if self.balance_weight > 0:
            own = strategy.mb_features.aux["balance_loss"]
            sizes = own.new_tensor(strategy.batch_sizes)
            each = distributed.gather_rows(own.reshape(1), [1] * len(sizes))
            mean = (each * sizes / sizes.sum()).sum()
            strategy.add_loss("balance", self.balance_weight * mean)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the experts that were used most, and the router."""
        count = self.count if self.freeze else 0
        self._moe(strategy).finish_task(count=count, rank_over=self.rank_over)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return routers by experience, the selector and the routing table.

        Adapters, counters and masks are part of the model.
        """
        chosen = self.auto_selector
        return {
            "routers": dict(self.routers),
            "owners": {name: list(step) for name, step in self.owners.items()},
            "steps": self._steps,
            "routing": deepcopy(self.routing),
            "selector": None if chosen is None else chosen.state_dict(),
            "selector_settings": None if chosen is None else chosen.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        :raises ValueError: if one of the two runs has a selector and the other
            has none, or it is that of another model or has other settings. The
            threshold may differ where the stored one was calibrated.
        """
        chosen = self.auto_selector
        if (state["selector"] is None) != (chosen is None):
            have = "none" if chosen is None else "one"
            raise ValueError(
                f"Of the stored and the resumed run one has a selector, this one has "
                f"{have}; build it with the same 'selector'."
            )
        if chosen is not None:
            ours, theirs = dict(chosen.identity), dict(state["selector_settings"])
            if state["selector"]["_extra_state"]["threshold_kind"] != "given":
                ours["threshold"] = theirs["threshold"] = None
            for name, stored in theirs.items():
                do = "build it with the same settings"
                require_same(f"{name} of the selector", stored, ours[name], do)
            # Made for a strategy, in check_compatible.
            chosen.bind(self._strategy.model)
            chosen.to(self._strategy.device)
            chosen.load_state_dict(state["selector"])
        self.routers = {str(k): int(v) for k, v in state["routers"].items()}
        self.owners = {k: read_step(step) for k, step in state["owners"].items()}
        self._steps = state["steps"]
        self.routing = deepcopy(state["routing"])
