"""What a template, a run or another method may ask of a plugin.

All of it is declared in :class:`MethodPlugin`, with a default. Plugins that are none,
Avalanche's and a user's own, are asked through a :class:`PluginContract`, made once
for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from functools import cache, partial, partialmethod
from typing import Any

from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_clip.common.plain import kept_arguments
from avalanche_clip.training.templates.own_plugins import (
    check_names,
    check_slots,
    is_stock,
    plain_state,
)

Context = AbstractContextManager[Any]
_REPAIRED: set[tuple[Any, str]] = set()
FORMER = {
    "replaces_deployed_weights": "replaces_deployed",
    "starts_fresh": "fresh_start",
    "budget_factor": "budget_multiplier",
    "keeps_per_weight_state": "active_rows_safe",
    "route_batch": "image_context",
}
"""Name of the contract -> the name that it had, which plain plugins may still use."""


@cache
def _hooks() -> tuple[str, ...]:
    """Names of more than one word that a plugin's methods are called by."""
    names = (n for n in dir(MethodPlugin) if "_" in n.strip("_"))
    return tuple(n for n in names if n[0] != "_" and callable(getattr(MethodPlugin, n)))


class MethodPlugin(SupervisedPlugin):
    """Base of methods: what may be asked of a plugin beyond Avalanche's callbacks.

    A method overrides what it needs; every default changes nothing. State and settings
    need no code while all attributes are plain: numbers, strings, bools, None, and
    flat lists of them. These are stored in checkpoints, so that a counter goes on
    exactly where it was; those named like an argument of the constructor are also
    compared when a run is resumed. A plugin with tensors names their attributes in
    ``state_attributes``, or defines :meth:`state_dict` and :meth:`load_state_dict`.

    Write ``class Mine(MethodPlugin, supports_distributed=True)`` if several processes
    may train with it.
    """

    # ------------------------------------------------------------------ roles
    replaces_deployed_weights: bool = False
    """Deploys other weights than were trained at the end of an experience (patching,
    averaging); such plugins act before all others."""
    starts_fresh: bool = False
    """Begins each later experience from fresh weights (restart): it warms up."""
    starts_elsewhere: bool = False
    """Begins an experience from others than the deployed weights (restart, trunks)."""
    keeps_per_weight_state: bool | None = None
    """Keeps something for each weight beside the optimiser (EWC, averaging); None: it
    is not known."""
    reads_weights_in_steps: bool = False
    """Reads or changes weights by name in the midst of an epoch (EWC, averages)."""
    protects_weights: bool = False
    """Holds weights near their values after earlier experiences, by name (EWC)."""
    closes_last: bool = False
    """Merges or freezes at the end of an experience what was trained in it; such
    plugins act after all others."""
    chooses_weights: bool = False
    """Ends an experience with weights of an earlier moment of it (early stopping)."""
    replays_data: bool = False
    """Trains on data of earlier experiences; one plugin of a strategy may."""
    routes_batches: bool = False
    """Chooses what the samples of a batch pass (:meth:`route_batch`); one may."""
    changes_text_table: bool = False
    """Changes the tokenizer or the size of the token table; one may."""
    sets_learning_rate: bool = False
    """Sets the learning rate in place of the strategy's schedule."""
    only_one: bool = False
    """A strategy may have one of its class only."""
    excludes: Mapping[str, str] = {}
    """Roles that no other plugin may have -> why, a clause with the other as ``{}``."""
    stateless: bool = False
    """Nothing of it is stored or compared, whatever attributes it has."""
    state_attributes: tuple[str, ...] = ()
    """Names of attributes that checkpoints hold beside the plain ones: tensors, and
    dicts and lists of them. All others are then left out."""
    nominal_cost: float = 1.0
    """Factor of the cost at which a run is accounted (1.2 for LwF in TiC-CLIP)."""
    step_values: Mapping[str, Tensor] = {}
    """Values of the step, by name, that :func:`loss_term_metrics` shows beside the
    terms of the loss."""

    def __init_subclass__(
        cls, supports_distributed: bool = False, **kwargs: Any
    ) -> None:
        super().__init_subclass__(supports_distributed=supports_distributed, **kwargs)
        if isinstance(cls.state_attributes, str):
            raise TypeError(
                f"{cls.__name__}.state_attributes={cls.state_attributes!r} is one "
                "string; give a tuple of names."
            )
        for name, former in FORMER.items():
            if former in vars(cls) and name not in vars(cls):
                raise TypeError(
                    f"{cls.__name__} defines {former}, which a MethodPlugin is not "
                    f"asked for; it is {name} now (see MethodPlugin.{name})."
                )
        check_slots(cls)
        check_names(cls, _hooks(), checked=MethodPlugin)

    @property
    def wrapped(self) -> Any:
        """The plugin that is asked: itself, or the one behind a contract object."""
        return self

    # -------------------------------------------------------------- questions
    def check_compatible(self, strategy: Any) -> None:
        """Raise ValueError if it cannot work with a strategy; attach what it needs.

        Asked when the strategy is built, and again when plugins were added. What it
        has attached to the model as a child is taken off if another plugin refuses.

        :param strategy: with its model, optimiser and all plugins.
        """

    def check_benchmark(self, benchmark: Any) -> None:
        """Raise ValueError before a run if the whole stream does not fit.

        :param benchmark: of :func:`run_stream`.
        """

    def check_extension(self, strategy: Any, steps: int) -> None:
        """Raise ValueError if its plan depends on the length of the stream.

        :param steps: of the stream that a run was made for, which is to go on.
        """

    def check_suites(self, strategy: Any, benchmark: Any) -> None:
        """Raise ValueError if it has no rule for images and texts outside a stream.

        Asked before a run with suites. By default plugins that choose what images
        pass, or classify, have none. One with a rule overrides this: in suites
        :meth:`route_batch` gets images alone, while ``strategy.experience`` is None.

        :param benchmark: of :func:`run_stream`.
        """
        if self.routes_batches or defines(self, "class_logits"):
            raise ValueError(
                "Suites score images and texts outside the stream, but "
                f"{type(self.wrapped).__name__} chooses what each image passes or how "
                "it is classified, and has no rule for these (see MethodPlugin."
                "check_suites): leave suites out, and evaluate streams."
            )

    def check_plan(self, strategy: Any, iterations: int) -> None:
        """Raise ValueError if the running experience is too short.

        :param iterations: planned for it.
        """

    def check_evaluations(self, strategy: Any, streams: Sequence[str]) -> None:
        """Raise ValueError before training if it can never act on evaluations in it.

        :param streams: names of those that are evaluated in training.
        """

    def check_step(
        self, strategy: Any, experience: Any, groups: Sequence[Sequence[Any]]
    ) -> None:
        """Raise ValueError if it can never act in an experience.

        :param experience: about to be trained.
        :param groups: what is evaluated meanwhile, one group per stream.
        """

    def teacher_kinds(self, strategy: Any) -> Sequence[str]:
        """Name the teachers that the coming experience needs.

        Asked at its start, before any plugin has changed the weights.
        """
        return ()

    def param_groups(self, strategy: Any) -> Sequence[dict[str, Any]]:
        """Claim parameters for optimiser groups of its own.

        Asked whenever the optimiser is rebuilt.

        :return: dicts with ``names`` and options of the group.
        """
        return ()

    def budget_factor(self, strategy: Any) -> float:
        """Multiple of the compute budget in the running experience."""
        return 1.0

    def replayed_data(self, strategy: Any) -> Any:
        """Return the earlier data that may be drawn in the coming experience.

        :return: one data set, or None. Data that were pooled in
            ``after_train_dataset_adaptation`` are not meant.
        """
        return None

    def replayed_classes(self, strategy: Any) -> Sequence[int]:
        """Ids of the classes in :meth:`replayed_data`; the same object while equal."""
        return ()

    def identity(self) -> dict[str, Any]:
        """Settings for the record of a run, which a resumed run must share.

        By default the arguments of the constructor that are kept as plain attributes.
        """
        return kept_arguments(self)

    def keywords(self) -> set[str]:
        """Names of the keywords of ``train`` and ``eval`` that its callbacks take."""
        return _keywords(self)

    # ---------------------------------------------------------------- moments
    def prepare(self, strategy: Any, dataset: Any) -> None:
        """Act once, before the first experience of a run is trained.

        Not called when a run is resumed: what it made is part of the state.

        :param dataset: that :func:`run_stream` was given as ``prepare_on``, which
            ``strategy.prepare_on`` then is, too; else that of the first experience.
        """

    def iteration_completed(self, strategy: Any) -> None:
        """Act when an iteration is over and counted; checkpoints may be written."""

    def experience_completed(self, strategy: Any) -> None:
        """Act when an experience is over and counted; checkpoints may be written."""

    def merge_updates(self, strategy: Any) -> None:
        """Put what is trained beside the weights into them, if it is deployed so.

        Called when a step has been trained and its weights are about to be mixed.
        """

    def forget_values(self) -> None:
        """Forget what was measured for another experience than the coming one."""

    def note_values(
        self,
        strategy: Any,
        experience: Any,
        group: Sequence[Any],
        values: Mapping[str, Any],
    ) -> None:
        """Take note of an evaluation made while an experience is trained.

        :param experience: that is trained.
        :param group: experiences of one stream that were evaluated.
        :param values: what was measured, by name.
        """

    def evaluation_failed(self, strategy: Any) -> None:
        """Undo what was begun for an evaluation that has failed."""

    def route_batch(self, strategy: Any, batch: Any) -> None:
        """Choose what the samples of a batch pass, until :meth:`end_route`.

        Called before each batch is encoded, in training and in evaluation (the images
        alone by strategies on class names), and by plugins that encode batches of
        their own; ``strategy.is_training`` and ``strategy.mb_x`` tell them apart.

        :param batch: about to be encoded.
        """

    def end_route(self, strategy: Any) -> None:
        """Go back to the base model, after the backward pass in training.

        Also called when the batch has failed, and if :meth:`route_batch` has.
        """

    def image_variants(self, strategy: Any) -> Tensor | None:
        """Name the form of the text tower that each routed image meets in suites.

        :return: ids, long ``(B,)``, -1 for the plain tower; None: always that one.
        """
        return None

    def variant_context(self, strategy: Any, variant: int) -> Context:
        """Make a context in which texts pass a form of :meth:`image_variants`."""
        return nullcontext()

    def class_logits(self, strategy: Any, image_features: Tensor) -> Tensor | None:
        """Logits ``(B, C)`` of an evaluation batch; None for the strategy's own.

        Asked again for each label space that is measured. One plugin at most may have
        it, with strategies on class names only.

        :param image_features: normalised, ``(B, D)``.
        """
        return None

    def class_loss(self, strategy: Any) -> Tensor | None:
        """Loss of the global training batch, likewise; None for the cross-entropy."""
        return None

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data: tensors, numbers, strings, containers.

        :raises TypeError: by default, for an attribute that is not plain.
        """
        give = (
            "Name it in state_attributes, define state_dict() and load_state_dict(), "
            "or set stateless = True."
        )
        return plain_state(self, self.state_attributes, give=give)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, possibly before data are there."""
        self.__dict__.update(deepcopy(state))

    def restore_data(self, benchmark: Any) -> None:
        """Find the data behind the state in the benchmark of a resumed run.

        Called after :meth:`load_state_dict`.
        """


class PluginContract(MethodPlugin):
    """The contract of a plugin that is no :class:`MethodPlugin`, or a stock one too.

    What the plugin defines under a name of the contract counts, else the default.

    :param plugin: any object that Avalanche takes for a plugin.
    """

    def __init__(self, plugin: Any):
        super().__init__()
        self._plugin = plugin
        self._route = ExitStack()

    @property
    def wrapped(self) -> Any:
        """The plugin."""
        return self._plugin

    def has(self, name: str) -> bool:
        """Whether the plugin defines a name of the contract."""
        return hasattr(self._plugin, name)

    @property
    def keeps_per_weight_state(self) -> bool | None:  # type: ignore[override]
        """As the plugin says; one that may hold nothing keeps nothing."""
        for name, meaning in (("keeps_per_weight_state", 1), ("active_rows_safe", 0)):
            if (said := getattr(self._plugin, name, None)) is not None:
                return bool(said) == bool(meaning)
        return False if self.stateless or not vars(self._plugin) else None

    @property
    def stateless(self) -> bool:  # type: ignore[override]
        """As the plugin says."""
        return bool(getattr(self._plugin, "stateless", False))

    @property
    def excludes(self) -> Mapping[str, str]:  # type: ignore[override]
        """As the plugin says, unless it means something else by that name."""
        found = getattr(self._plugin, "excludes", None)
        return found if isinstance(found, Mapping) else {}

    def route_batch(self, strategy: Any, batch: Any) -> None:
        """As the plugin does; ``image_context`` is for images of an evaluation."""
        if self.has("route_batch"):
            self._plugin.route_batch(strategy, batch)
        elif self.has("image_context") and batch is strategy.mb_x:
            if not (strategy.is_training or strategy.reads_captions):
                context = self._plugin.image_context(strategy)
                self._route.enter_context(context or nullcontext())

    def end_route(self, strategy: Any) -> None:
        """Leave the context of :meth:`route_batch`, or as the plugin does."""
        self._route.close()
        if self.has("end_route"):
            self._plugin.end_route(strategy)

    def identity(self) -> dict[str, Any]:
        """Settings that the plugin tells, else arguments that it has kept."""
        if callable(own := getattr(self._plugin, "identity", None)):
            told: dict[str, Any] = own()
            return told
        return kept_arguments(self._plugin)

    def keywords(self) -> set[str]:
        """Names of the keywords that the plugin's callbacks take."""
        return _keywords(self._plugin)

    def check_class(self) -> None:
        """Raise TypeError as for the class of a :class:`MethodPlugin`."""
        check_names(type(self._plugin), _hooks())
        if not (self.has("state_dict") or self.stateless or is_stock(self._plugin)):
            check_slots(type(self._plugin))

    def state_dict(self) -> dict[str, Any]:
        """State that the plugin tells, else its plain attributes.

        :raises TypeError: without a ``state_dict``, for an attribute that is not
            plain, and for a plugin of Avalanche's whose state is not known.
        """
        if callable(own := getattr(self._plugin, "state_dict", None)):
            state: dict[str, Any] = own()
            return state
        give = (
            "Give it state_dict() and load_state_dict(), make it a MethodPlugin with "
            "state_attributes, use register_plugin_state, or set stateless = True on "
            "it."
        )
        if is_stock(self._plugin):  # which fill their attributes in training
            raise TypeError(
                f"{type(self._plugin).__name__} may have state "
                f"({sorted(vars(self._plugin))}), but no state_dict(): a resumed run "
                f"would differ. {give}"
            )
        return plain_state(self._plugin, give=give)

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Put back what :meth:`state_dict` returned."""
        if self.has("load_state_dict"):
            return self._plugin.load_state_dict(state)
        return vars(self._plugin).update(deepcopy(state))


def _delegated(name: str, default: Any) -> Any:
    """What a contract object answers for a plugin that may define ``name`` itself."""
    names = (name, FORMER.get(name, name))

    def own(contract: PluginContract) -> Any:
        found = [getattr(contract.wrapped, n) for n in names if contract.has(n)]
        return found[0] if found else None

    def value(contract: PluginContract) -> Any:
        found = own(contract)
        return default if found is None else found

    def ask(contract: PluginContract, *arguments: Any) -> Any:
        found = own(contract)
        return (found if callable(found) else partial(default, contract))(*arguments)

    return ask if callable(default) else property(value)


for _name, _default in list(vars(MethodPlugin).items()):
    if not _name.startswith("_") and _name not in vars(PluginContract):
        setattr(PluginContract, _name, _delegated(_name, _default))


def defines(contract: MethodPlugin, name: str) -> bool:
    """Whether a plugin has an answer of its own to a question of the contract."""
    plugin = contract.wrapped
    if isinstance(plugin, MethodPlugin):
        return getattr(type(plugin), name) is not getattr(MethodPlugin, name)
    return hasattr(plugin, name)


@contextmanager
def routed(strategy: Any, batch: Any) -> Iterator[None]:
    """Route a batch in a ``with`` block as in training and evaluation.

    :param strategy: whose plugins choose what the samples of the batch pass.
    :param batch: about to be encoded.
    """
    with ExitStack() as stack:
        for contract in strategy.contracts:
            stack.callback(contract.end_route, strategy)
            contract.route_batch(strategy, batch)
        yield


def repair_once(cls: Any, name: str, new: Callable[..., Any]) -> None:
    """Replace a method of a stock class, if that has not been done.

    :param new: called with the object, the stock method, and the arguments.
    """
    if (cls, name) not in _REPAIRED:
        _REPAIRED.add((cls, name))
        setattr(cls, name, partialmethod(new, getattr(cls, name)))


def _keywords(plugin: Any) -> set[str]:
    hooks: Iterable[Any] = (
        getattr(plugin, name)
        for name in dir(type(plugin))
        if name.startswith(("before_", "after_"))
    )
    return {p for h in hooks if callable(h) for p in inspect.signature(h).parameters}
