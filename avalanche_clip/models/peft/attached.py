"""All branches of one kind in a model: ids, what trains, state, merging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avalanche_clip.common.checks import as_integers, as_size
from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft import storage
from avalanche_clip.models.peft.branch import (
    TOWERS,
    Branch,
    RoutedBranch,
    require_encoder,
    set_trainable,
)
from avalanche_clip.models.peft.routes import (
    SKIP,
    Routes,
    RowIds,
    parse_ids,
    present,
    restored,
)
from avalanche_clip.models.text.vocabulary_storage import naming


class BranchSet(nn.Module):
    """All branches of one kind in a model; an attribute of the model.

    It holds no parameters: branches are children of their blocks. Each tower has its
    own id (or ids per row), 0 at first; copies of the model have their own. Under -1
    nothing is computed, and features equal those of the model without branches bit
    for bit.

    :param model: the model.
    :param name: attribute of the model that holds the set.
    :param config: how the branches were made, plain data.
    :param freezes: whether the model's own parameters are frozen while the set is
        attached.
    """

    WHAT = "branches"
    RULES: storage.Rules = {
        "config": lambda v: isinstance(v, dict),
        "ids": lambda v: storage.is_ints(v, 0),
        "training": lambda v: v is None or storage.is_ints(v, 0),
    }
    START = 0  # id of all rows at first

    def __init__(
        self,
        model: DualEncoder,
        name: str,
        config: dict[str, Any],
        *,
        freezes: bool = True,
    ) -> None:
        super().__init__()
        check_free(model, name, self.WHAT)
        # In containers, so that nothing is registered a second time.
        self._owner = (model,)
        self.name = name
        self.config = config
        self.freezes = freezes
        self._branches: dict[str, list[Any]] = {}
        self._routes: dict[str, Routes] = {}
        self._flags: dict[str, bool] = {}
        self._still: set[str] = set()
        self._training: tuple[int, ...] | None = (0,)  # None: all
        self._handles: list[Any] = []
        self._cache = FingerprintCache()

    # ---------------------------------------------------------------- description
    @property
    def model(self) -> DualEncoder:
        """The model the branches belong to."""
        return self._owner[0]

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers that have branches."""
        return tuple(self._branches)

    def branches(self, tower: str | None = None) -> list[Any]:
        """List the branches of one tower, or of all, first block to last."""
        if tower is None:
            return [b for branches in self._branches.values() for b in branches]
        return list(self._branches[self._check_tower(tower)])

    def _check_tower(self, tower: str) -> str:
        if tower not in self._branches:
            raise ValueError(
                f"tower={tower!r} has no {self.WHAT}; use one of {list(self.towers)}."
            )
        return tower

    def named_branches(self) -> Iterator[tuple[str, Branch]]:
        """Yield the branches with their names in the model."""
        own = set(map(id, self.branches()))
        for name, module in self.model.named_modules():
            if id(module) in own:
                yield name, module  # type: ignore[misc]

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List what trains, with names as in ``model.named_parameters()``."""
        return [
            (f"{prefix}.{name}", parameter)
            for prefix, branch in self.named_branches()
            for name, parameter in branch.named_parameters()
            if parameter.requires_grad
        ]

    @property
    def num_parameters(self) -> int:
        """Numbers in all branches."""
        return sum(p.numel() for b in self.branches() for p in b.parameters())

    @property
    def num_trainable(self) -> int:
        """Numbers that train."""
        return sum(parameter.numel() for _, parameter in self.trainable_parameters())

    # ------------------------------------------------------------------------ ids
    @property
    def keys(self) -> tuple[int, ...]:
        """Ids that have parts, in order of arrival."""
        return self.branches()[0].keys

    def add(self, key: int | None = None) -> int:
        """Make the parts of an id; nothing happens if it has some.

        They train if :meth:`train_ids` chooses them.

        :param key: the id; None for the next free one.
        :return: the id.
        """
        free = max(self.keys, default=-1) + 1
        key = free if key is None else as_size(key, "key", least=0)
        if key not in self.keys:
            for branch in self.branches():
                branch.add(key)
            self.restore_trainable()
        return key

    def check_known(self, present: Iterable[int]) -> None:
        """Raise ValueError unless all ids are -1 or have parts."""
        unknown = [key for key in present if key != SKIP and key not in self.keys]
        if unknown:
            raise ValueError(
                f"Id {unknown[0]} does not exist; there are {list(self.keys)}, and"
                f" {SKIP} for the plain model. Make one with add()."
            )

    @property
    def ids(self) -> dict[str, int | Tensor]:
        """Current id of each tower, or ids per row."""
        return {tower: routes.plain for tower, routes in self._routes.items()}

    def set_ids(self, ids: Any = None, *, image: Any = None, text: Any = None) -> None:
        """Choose the ids of the next passes.

        :param ids: for both towers; -1 for the plain model.
        :param image: id, or LongTensor with one id per image, of the image tower.
        :param text: id, or LongTensor with one id per text, of the text tower. What
            is None stays as it is.
        :raises ValueError: for unknown ids and towers without branches.
        """
        chosen = {} if ids is None else dict.fromkeys(self._routes, ids)
        own = {"image": image, "text": text}
        chosen |= {t: given for t, given in own.items() if given is not None}
        parsed = {self._check_tower(t): parse_ids(given) for t, given in chosen.items()}
        for found in parsed.values():
            self.check_known(present(found))
        for tower, found in parsed.items():
            self._routes[tower].ids = found

    @contextmanager
    def using_ids(
        self, ids: Any = None, *, image: Any = None, text: Any = None
    ) -> Iterator[Any]:
        """Choose ids as :meth:`set_ids` does, and restore the old ones on exit."""
        with restored(self._routes):
            self.set_ids(ids, image=image, text=text)
            yield self

    def train_ids(self, keys: Iterable[int]) -> None:
        """Let the parts of these ids train, and freeze those of all others."""
        chosen = tuple(as_integers(keys, "keys"))
        self.check_known(chosen)
        self._training = chosen
        self.restore_trainable()

    def restore_trainable(self) -> None:
        """Let train what may, after something else has frozen or thawed it."""
        for branch in self.branches():
            for key, parts in branch.table.items():
                chosen = self._training is None or int(key) in self._training
                set_trainable(parts, chosen)

    # --------------------------------------------------------------------- storage
    def growth_state(self) -> dict[str, Any]:
        """Describe how the branches were made, and their ids, as plain data.

        Ids in use are part of it where all rows of a tower have the same.
        """
        training = None if self._training is None else list(self._training)
        return {
            "config": dict(self.config),
            "ids": list(self.keys),
            "training": training,
            "in_use": {t: i for t, i in self.ids.items() if isinstance(i, int)},
        }

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`growth_state` returned; values of weights stay.

        :raises ValueError: if the stored branches were made in another way.
        """
        self.check_config(state)
        for branch in self.branches():
            for key in set(branch.keys) - set(state["ids"]):
                del branch.table[str(key)]
        for key in state["ids"]:
            self.add(key)
        for tower, key in state.get("in_use", {}).items():
            self._routes[tower].ids = key
        for routes in self._routes.values():
            if not {SKIP, *self.keys} >= set(present(routes.ids)):
                routes.ids = SKIP  # what it named is gone
        self._training = state["training"] and tuple(state["training"])
        self.restore_trainable()

    @staticmethod
    def made_with(state: dict[str, Any]) -> dict[str, Any]:
        """Pick from a growth state what two sets must share to exchange weights."""
        return state["config"]

    def check_config(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the branches of a growth state were made otherwise."""
        ours, theirs = self.made_with(self.growth_state()), self.made_with(state)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"The stored {self.WHAT} have {name}={theirs.get(name)!r}, these"
                    f" {ours.get(name)!r}; attach {self.WHAT} with the stored options."
                )

    def fingerprint_of(self, tensors: Any, kinds: tuple[str, ...] = ()) -> str:
        """Return a content hash of tensors, of branches only some.

        :param tensors: pairs of name and tensor.
        :param kinds: beginnings of the names, below a branch, that count.
        """
        prefixes = tuple(f"{name}." for name, _ in self.named_branches())
        wanted = tuple(prefix + kind for prefix in prefixes for kind in kinds)
        return self._cache(
            (name, tensor)
            for name, tensor in tensors
            if not name.startswith(prefixes) or name.startswith(wanted)
        )

    def base_fingerprint(self) -> str:
        """Return a content hash of the model without these branches."""
        return self.fingerprint_of(self.model._tensors_of(None))

    def adapter_state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers, how they were made, and a hash of the base.

        :return: ``{"facts": numbers, strings and lists, "tensors": by name}``;
            plain data, tensors are copies.
        """
        base = {
            "pretrained": self.model.pretrained,
            "checksum": self.base_fingerprint(),
        }
        facts = {"format": storage.FORMAT, "base": base, **self.growth_state()}
        facts.pop("in_use", None)  # the choice of a model, not of its weights
        return {
            "facts": facts,
            "tensors": {
                f"{tower}.{number}.{name}": tensor.detach().clone()
                for tower, branches in self._branches.items()
                for number, branch in enumerate(branches)
                for name, tensor in branch.state_dict().items()
            },
        }

    def load_adapter_state_dict(
        self, state: dict[str, Any], check_base: bool = True
    ) -> None:
        """Put back what :meth:`adapter_state_dict` returned, all of it or nothing.

        The ids become those of the state.

        :param state: the state.
        :param check_base: refuse adapters that were trained on other weights.
        :raises ValueError: if the base, the options or the blocks differ.
        """
        facts, tensors = storage.checked(state, self.RULES)
        self.check_facts(facts)
        base, own = facts["base"], self.base_fingerprint() if check_base else ""
        if check_base and own != base["checksum"]:
            raise ValueError(
                f"The adapters were trained on other weights (pretrained="
                f"{base['pretrained']!r}, checksum {base['checksum']}) than those of"
                f" this model (pretrained={self.model.pretrained!r}, checksum {own});"
                " create the model with the same configuration, weights and precision."
            )
        self.check_config(facts)
        parts = storage.matched(self._branches, tensors, self.keys_of(facts))
        self.load_growth_state(facts)
        for branch, values in parts:
            branch.load_state_dict(values)
        self.restore_trainable()

    @staticmethod
    def check_facts(facts: dict[str, Any]) -> None:
        """Raise ValueError if facts that pass the rules contradict each other."""

    @staticmethod
    def keys_of(facts: dict[str, Any]) -> Iterable[int]:
        """Ids of a growth state."""
        return facts["ids"]

    def save(self, path: str | Path) -> None:
        """Write the branches alone as one safetensors file.

        :param path: ends with ``.safetensors``; replaced if it exists.
        """
        storage.write(self.adapter_state_dict(), path, self.name)

    def load(
        self, path: str | Path, check_base: bool = True, *, verify: bool = True
    ) -> None:
        """Read a file written by :meth:`save`.

        :param path: the file.
        :param check_base: refuse branches that were trained on other weights.
        :param verify: compare the checksums of all tensors, even of large ones.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if it is damaged, else as :meth:`load_adapter_state_dict`.
        """
        state = storage.read(path, self.name, self.WHAT, self.RULES, verify=verify)
        with naming(path, f"{self.WHAT} of this model"):
            self.load_adapter_state_dict(state, check_base)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": FingerprintCache()}

    def forward_state(self) -> dict[str, int | RowIds]:
        """Ids per tower: what decides a pass beside weights."""
        return {tower: routes.ids for tower, routes in self._routes.items()}

    def load_forward_state(self, state: dict[str, int | RowIds]) -> None:
        """Put back what :meth:`forward_state` of this model or a copy returned."""
        for tower, ids in state.items():
            self._routes[tower].ids = ids

    # --------------------------------------------------------------------- attach
    def connect(self, branches: Mapping[str, list[tuple[Branch, BlockView]]]) -> None:
        """Freeze the model and hook branches into its blocks, once.

        :param branches: per tower, branches and where they belong.
        """
        model, others = self.model, attached(self.model)
        self._flags = {n: p.requires_grad for n, p in model.named_parameters()}
        self._still = set(model._still)
        for other in others:
            if other.freezes:  # the model is frozen already
                self._flags, self._still = other._flags, other._still
        if self.freezes:
            # not model.freeze(), which may store weights in another type
            set_trainable(model, False)
            model._still = set(TOWERS)
            for other in others:
                other.restore_trainable()
        for tower, pairs in branches.items():
            self._routes[tower] = Routes(self.START)
            self._branches[tower] = [branch for branch, _ in pairs]
            for branch, view in pairs:
                branch.connect(view, self._routes[tower])
        setattr(model, self.name, self)
        for branch in self.branches():
            if isinstance(branch, RoutedBranch) and self.START != SKIP:
                branch.add(self.START)
        self._handles = [model.register_load_state_dict_pre_hook(self._before_load)]
        model.train(model.training)

    def _before_load(self, model: Any, state: Any, prefix: str, *rest: Any) -> None:
        """Report branches that a state leaves out.

        The state of a plain model has none at all and leaves them as they are.
        """
        named = {f"{prefix}{name}.": own for name, own in self.named_branches()}
        absent = [n for n in named if not any(key.startswith(n) for key in state)]
        for name in absent if len(absent) < len(named) else ():
            missing = rest[2]  # behind the metadata and strict
            missing += named[name].state_dict(prefix=name)

    def detach(self) -> None:
        """Remove the branches, and let train what trained before.

        The model then is the one before they were attached.
        """
        model = self.model
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for branch in self.branches():
            branch.detach()
        setattr(model, self.name, None)
        if self.freezes and not any(other.freezes for other in attached(model)):
            for name, parameter in model.named_parameters():
                if name in self._flags:
                    parameter.requires_grad_(self._flags[name])
            model._still = set(self._still)
        model.train(model.training)

    def active_ids(self) -> dict[str, int]:
        """Return the id of each tower.

        :raises ValueError: if there is none, or several.
        """
        used = {tower: list(present(own.ids)) for tower, own in self._routes.items()}
        several = {tower: ids for tower, ids in used.items() if len(ids) != 1}
        if several:
            raise ValueError(
                f"The rows of model.{self.name} have several ids {several}, and weights"
                " can hold one; choose it with set_ids(id)."
            )
        active = {tower: ids[0] for tower, ids in used.items()}
        if set(active.values()) == {SKIP}:
            raise ValueError(
                f"No id of model.{self.name} is in use; choose the one to merge from"
                f" {list(self.keys)} before."
            )
        return active

    def merge(self) -> None:
        """Put the updates of the active id into the weights, and detach.

        :raises ValueError: if that is not exact; the model is then unchanged.
        """
        self.fold()
        self.detach()

    def fold(self, share: float = 1.0) -> None:
        """Put the updates of the active id into the weights, and drop its parts.

        Both towers drop the parts of an id that one of them has active. The branches
        stay, under the id -1.

        :param share: of the updates.
        :raises ValueError: see :meth:`merge`.
        """
        self.check_merge()
        active = self.active_ids()
        for tower, key in active.items():
            for branch in self._branches[tower] if key != SKIP else ():
                branch.merge(key, share)
        for branch in self.branches():
            for key in {*active.values()} - {SKIP}:
                del branch.table[str(key)]
        self.set_ids(SKIP)

    def check_merge(self) -> None:
        """Raise ValueError if :meth:`merge` would."""
        self.active_ids()
        for branch in self.branches():
            branch.check_merge()


def attachment(model: nn.Module, name: str) -> Any:
    """Return what is attached to a model under a name; None without, for any model."""
    return model._modules.get(name)


def check_free(model: nn.Module, name: str, what: str) -> None:
    """Raise ValueError if something is attached to a model under a name."""
    require_encoder(model)
    if attachment(model, name) is not None:
        raise ValueError(
            f"The model has {what} already; use model.{name}, or detach() them before."
        )


def attached(model: nn.Module) -> list[BranchSet]:
    """List what is attached to a model."""
    return [child for child in model.children() if isinstance(child, BranchSet)]
