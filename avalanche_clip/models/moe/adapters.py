"""Expert mixtures beside the perceptron of every block of a dual encoder.

A block computes ``r = x + attn(norm1(x))`` and then ``r + mlp(norm2(r))``. With
the mixture attached it is ``r + mlp(norm2(r)) + moe(r)``. The adapters are new
children ``moe`` of the blocks, so all parameters keep their names.

Source: Yu et al., CVPR 2024 (MoE-Adapters, arXiv 2403.11549) and the released
code; the router id is part of the model here, not of the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_clip.common.checks import require_choice
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.models.moe.block import BlockMoE
from avalanche_clip.models.moe.mixture import NUM_EXPERTS
from avalanche_clip.models.moe.progress import SEVERAL, MoEProgress
from avalanche_clip.models.peft import storage
from avalanche_clip.models.peft.attached import BranchSet, check_free
from avalanche_clip.models.peft.branch import TOWERS, chosen_blocks, set_trainable
from avalanche_clip.models.peft.routes import SKIP
from avalanche_clip.models.text.vocabulary_storage import naming

NAME = "moe_adapters"
"""Attribute of the model that holds the set."""
_WHAT = "expert adapters"
_RULES: storage.Rules = {
    "towers": lambda v: bool(v) and storage.is_table(v, _is_sizes),
    "options": lambda v: bool(v) and storage.is_table(v, lambda w: w is not None),
    "num_routers": lambda v: storage.is_int(v, 1),
    "active_router": lambda v: storage.is_int(v, 0),
    "learned": lambda v: storage.is_ints(v, 0),
    "in_task": lambda v: isinstance(v, bool),
    "counting": lambda v: isinstance(v, bool),
    "routers": lambda v: storage.is_table(v, lambda w: storage.is_int(w, SKIP)),
}


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(storage.is_int(v, 1) for v in values)


class MoEAdapterSet(BranchSet):
    """All expert mixtures of a dual encoder; made by :func:`attach_moe_adapters`.

    It is ``model.moe_adapters`` and holds no parameters: the adapters belong to the
    blocks. Each tower has its own router id (or ids), 0 at first; copies of the model
    have their own. Under -1 nothing is computed and features equal those of the frozen
    model without adapters bit for bit.

    :param model: the model.
    """

    WHAT, RULES = _WHAT, _RULES

    def __init__(self, model: DualEncoder) -> None:
        super().__init__(model, NAME, {})
        self.moe = MoEProgress()

    # ------------------------------------------------------------- description
    def adapters(self, tower: str | None = None) -> list[BlockMoE]:
        """List the mixtures of one tower, or of all, first block to last."""
        return self.branches(tower)

    @property
    def num_routers(self) -> int:
        """Number of routers of every block."""
        return self.adapters()[0].num_routers

    @property
    def active_router(self) -> int:
        """The router in training."""
        return self.adapters()[0].active_router

    @property
    def learned(self) -> list[int]:
        """Routers of finished tasks, in the order of finishing."""
        return self.moe.learned

    # ----------------------------------------------------------------- routers
    @property
    def routers(self) -> dict[str, int | Tensor]:
        """Current router id of each tower, or ids per row."""
        return self.ids

    def set_router(
        self, router: Any = None, *, image: Any = None, text: Any = None
    ) -> None:
        """Choose the routers of the next passes, see :meth:`set_ids`."""
        self.set_ids(router, image=image, text=text)

    def using_router(
        self, router: Any = None, *, image: Any = None, text: Any = None
    ) -> AbstractContextManager[MoEAdapterSet]:
        """Choose routers as :meth:`set_router` does, and restore them on exit."""
        return self.using_ids(router, image=image, text=text)

    @property
    def keys(self) -> tuple[int, ...]:
        """Ids of the routers."""
        return tuple(range(self.num_routers))

    def check_known(self, present: Iterable[int]) -> None:
        """Raise ValueError unless all ids are -1 or those of routers."""
        self.adapters()[0].check_known(present)

    def add(self, key: int | None = None) -> int:
        """Add a router to every block; it does not train before its task starts.

        :param key: its id, the next one, or that of a known router; None for a new one.
        :return: its id.
        """
        number = self.num_routers
        if key is not None and key != number:
            self.check_known([key])
            return key
        for adapter in self.adapters():
            set_trainable(adapter.routers[adapter.add_router()], False)
        self.moe.finish(self.learned, number + 1)
        return number

    def add_router(self) -> int:
        """Add a router to every block, see :meth:`add`."""
        return self.add()

    def drop(self, key: int) -> None:
        """Refuse: experts remember the routers that they served.

        :raises ValueError: always.
        """
        raise ValueError("Routers cannot be removed one by one; detach() the adapters.")

    def train_ids(self, keys: Iterable[int]) -> None:
        """Refuse: tasks decide which router trains.

        :raises ValueError: always.
        """
        raise ValueError("Routers train in their task; use start_task(router).")

    # ------------------------------------------------------------------- tasks
    def start_task(self, router: int | None = None) -> int:
        """Begin a task: its router trains, and so do all unfrozen experts.

        Counters start at zero, and both towers use the router.

        :param router: id, made if it is the next one; None takes 0 for the
            first task and a new one afterwards.
        :return: the id.
        :raises ValueError: if an id would be left out.
        """
        if router is None:
            begun = bool(self.moe.in_task) or self.learned
            router = self.num_routers if begun else 0
        if not 0 <= router <= self.num_routers:
            raise ValueError(
                f"router={router} cannot be started; choose 0 to {self.num_routers}"
                " (the next new one)."
            )
        if router == self.num_routers:
            self.add_router()
        self._clear(router)
        self.counting = True
        self.moe.in_task.fill_(True)
        self.restore_trainable()
        self.set_router(router)
        return router

    def finish_task(
        self, count: int = 2, rank_over: str = "all"
    ) -> dict[str, list[list[int]]]:
        """End a task: freeze its router and its most used experts.

        Counters of all processes are added up, then cleared.

        :param count: experts frozen per block; 0 freezes none.
        :param rank_over: see :meth:`MoEAdapter.freeze_most_used`.
        :return: experts frozen by this call, per tower and block.
        """
        self.share_counts()
        frozen = {
            tower: [a.freeze_most_used(count, rank_over) for a in self.adapters(tower)]
            for tower in self.towers
        }
        self._clear(self.active_router)
        self.counting = False
        self.moe.in_task.fill_(False)
        learned = dict.fromkeys([*self.learned, self.active_router])
        self.moe.finish(learned, self.num_routers)
        self.restore_trainable()
        return frozen

    def _clear(self, router: int) -> None:
        for adapter in self.adapters():
            adapter.activate_router(router)
            adapter.clear_counts()
            adapter.clear_balance()

    def share_counts(self) -> None:
        """Add up what each process has counted since the last call.

        Afterwards the counters of all processes are the same. All of them must
        call it together; with a single one nothing happens.
        """
        running = dist.is_available() and dist.is_initialized()
        if not running or dist.get_world_size() == 1:
            return
        adapters = self.branches()
        device = adapters[0].frozen.device
        before = torch.stack([a._shared.to(device) for a in adapters])
        added = torch.stack([a.counts.to(device) for a in adapters]) - before
        dist.all_reduce(added)
        for adapter, counts in zip(adapters, before + added, strict=True):
            adapter.counts = adapter._shared = counts.clone()

    @contextmanager
    def paused(self, tower: str) -> Iterator[None]:
        """Let passes of one tower neither count nor collect the balance loss."""
        adapters = self._branches.get(tower, [])
        for adapter in adapters:
            adapter.paused = True
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.paused = False

    def restore_trainable(self) -> None:
        """Let train what may: unfrozen experts, and the router of a running task.

        Before the first task router 0 counts as running.
        """
        running = bool(self.moe.in_task) or not self.learned
        for adapter in self.adapters():
            for number, router in enumerate(adapter.routers):
                set_trainable(router, running and number == adapter.active_router)
            for expert, frozen in zip(adapter.experts, adapter.frozen.tolist()):
                set_trainable(expert, not frozen)

    @property
    def counting(self) -> bool:
        """Whether training passes count which experts rows keep."""
        return self.adapters()[0].counting

    @counting.setter
    def counting(self, counting: bool) -> None:
        for adapter in self.adapters():
            adapter.counting = counting

    # ----------------------------------------------------------------- balance
    @property
    def track_balance(self) -> bool:
        """Whether training passes collect the balance loss (default False).

        The model's output then has ``aux["balance_loss"]`` in training mode.
        """
        return self.adapters()[0].track_balance

    @track_balance.setter
    def track_balance(self, track: bool) -> None:
        for adapter in self.adapters():
            adapter.track_balance = track
            adapter.clear_balance()

    def balance_loss(self) -> Tensor:
        """Sum the balance loss over blocks, towers and passes since it was cleared.

        :return: 0-d, with gradient; 0 if nothing was collected.
        """
        values = [adapter.balance() for adapter in self.adapters()]
        return torch.stack([v.to(values[0].device) for v in values]).sum()

    def clear_balance(self) -> None:
        """Forget what was collected; ``model(batch)`` does it at its start."""
        for adapter in self.adapters():
            adapter.clear_balance()

    def before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Start a new balance loss (pre-hook of the model)."""
        self.clear_balance()

    def after_forward(
        self, module: nn.Module, args: tuple[Any, ...], output: CLIPOutput
    ) -> CLIPOutput | None:
        """Put the balance loss into the output (hook of the model)."""
        if not (self.track_balance and self.training):
            return None
        aux = {**(output.aux or {}), "balance_loss": self.balance_loss()}
        return output._replace(aux=aux)

    # ------------------------------------------------------------------- state
    def growth_state(self) -> dict[str, Any]:
        """Describe options, growth and progress as plain data."""
        widths = {t: [a.width for a in self.adapters(t)] for t in self.towers}
        ids = {t: i for t, i in self.ids.items() if isinstance(i, int)}
        return {
            "towers": widths,
            "options": self.adapters()[0].options(),
            "num_routers": self.num_routers,
            "active_router": self.active_router,
            "learned": list(self.learned),
            "in_task": bool(self.moe.in_task),
            "counting": self.counting,
            "routers": {t: ids.get(t, self.active_router) for t in self.towers},
        }

    @staticmethod
    def made_with(state: dict[str, Any]) -> dict[str, Any]:
        """Pick from a growth state what two sets must share to exchange weights."""
        return {"towers": state["towers"], **state["options"]}

    @staticmethod
    def keys_of(facts: dict[str, Any]) -> Iterable[int]:
        """Ids of the routers."""
        return range(facts["num_routers"])

    @staticmethod
    def check_facts(facts: dict[str, Any]) -> None:
        """Raise ValueError if routers are named that are not there."""
        ids = facts["routers"]
        used = [facts["active_router"], *facts["learned"], *ids.values()]
        if max(used) >= facts["num_routers"] or ids.keys() != facts["towers"].keys():
            raise storage.damaged(facts, "routers")

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`growth_state` returned; values of weights stay.

        :raises ValueError: if the towers, blocks or options are others.
        """
        self.check_config(state)
        for adapter in self.adapters():
            del adapter.routers[state["num_routers"] :]
            while adapter.num_routers < state["num_routers"]:
                adapter.add_router()
        self.counting = state["counting"]
        self._set_progress(state)
        self.restore_trainable()

    def _set_progress(self, state: dict[str, Any]) -> None:
        for adapter in self.adapters():
            adapter._active = state["active_router"]
        self.moe.finish(state["learned"], self.num_routers)
        self.moe.in_task.fill_(state["in_task"])
        for tower in self._routes.keys() & state["routers"].keys():
            self._routes[tower].ids = state["routers"][tower]

    def _save_to_state_dict(self, *args: Any) -> None:
        """Bring up to date what passes read as plain numbers."""
        ids = [self.ids.get(tower) for tower in TOWERS]
        ids = [i if isinstance(i, int) else SEVERAL for i in ids]
        self.moe.routers.copy_(torch.tensor(ids))
        self.moe.active_router.fill_(self.active_router)
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the progress; the state of a plain model holds none."""
        facts = self.moe.read(state_dict, f"{prefix}moe.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        ids = (facts["active_router"], *facts["learned"]) if facts else ()
        if facts and max(*ids, *facts["routers"].values()) < self.num_routers:
            self._set_progress(facts)  # else the state is only a part
            # Copies such as teachers are frozen as a whole, and stay so.
            if self.num_trainable:
                self.restore_trainable()
        if facts is not None:
            state_dict.update(self.state_dict(prefix=prefix))

    def fingerprint(self, tower: str, router: int) -> str:
        """Return a content hash of what decides a tower's features.

        :param tower: ``"image"`` or ``"text"``.
        :param router: id; under -1 the base weights alone count, so the hash
            stays the same while the adapters train.
        :return: 32 hexadecimal digits. Other routers, counters and frozen
            masks are not part of it.
        """
        tensors = self.model._tensors_of(tower)
        if router == SKIP or tower not in self._branches:
            return self.fingerprint_of(tensors)
        self._branches[tower][0].check_known([router])
        return self.fingerprint_of(tensors, ("experts.", f"routers.{router}."))

    # ------------------------------------------------------------------ attach
    def connect(self, branches: Any) -> None:
        """Freeze the model and hook the adapters into its blocks, once."""
        super().connect(branches)
        self._handles += [
            self.model.register_forward_pre_hook(self.before_forward),
            self.model.register_forward_hook(self.after_forward),
        ]


def attach_moe_adapters(
    model: DualEncoder,
    *,
    towers: Iterable[str] | str = TOWERS,
    num_experts: int = NUM_EXPERTS,
    top_k: int = 2,
    bottleneck: int = 64,
    **options: Any,
) -> MoEAdapterSet:
    """Put an expert mixture into every block and freeze everything else.

    The new mixtures give zeros, so features equal those of the frozen model bit
    for bit. (Freezing can change the last bits, since PyTorch picks other kernels for
    frozen weights.) All experts and
    router 0 are trainable; the model's own parameters, ``logit_scale``
    included, are frozen until :meth:`MoEAdapterSet.detach`.

    :param model: a dual encoder with residual attention blocks.
    :param towers: ``"image"``, ``"text"`` or both.
    :param num_experts: E, the size of each block's pool.
    :param top_k: experts kept per row.
    :param bottleneck: hidden width of an expert.
    :param options: further arguments of :class:`MoEAdapter`.
    :return: the set, also ``model.moe_adapters``.
    :raises ValueError: if adapters are attached already, a tower is unknown,
        has no such blocks, or an option is out of range; the model is then
        unchanged.

    Source: Yu et al., CVPR 2024; the defaults are those of the released code.
    """
    given = [towers] if isinstance(towers, str) else list(dict.fromkeys(towers))
    if not given:
        raise ValueError(f"towers is empty; give one or both of {list(TOWERS)}.")
    options |= {"num_experts": num_experts, "top_k": top_k, "bottleneck": bottleneck}
    result, made = MoEAdapterSet(model), {}
    for tower in given:
        require_choice("towers", tower, TOWERS)
        views = chosen_blocks(model, tower, None)[0][tower]
        made[tower] = [
            (BlockMoE(v.width, **options).to(v.norm2.weight.device), v)  # type: ignore
            for v in views
        ]
    result.connect(made)
    return result


def load_moe_adapters(
    model: DualEncoder,
    path: str | Path,
    check_base: bool = True,
    *,
    verify: bool = True,
) -> MoEAdapterSet:
    """Attach the adapters of a file to a model that has none.

    :param model: the base they were trained on.
    :param path: file written by :meth:`MoEAdapterSet.save`.
    :param check_base: refuse adapters that were trained on other weights.
    :param verify: compare the checksums of all tensors, even of large ones.
    :return: the set, also ``model.moe_adapters``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged or does not fit; the model is then
        unchanged.
    """
    check_free(model, NAME, _WHAT)
    state = storage.read(path, NAME, _WHAT, _RULES, verify=verify)
    facts = state["facts"]
    with naming(path, _WHAT):
        MoEAdapterSet.check_facts(facts)
    try:
        adapters = attach_moe_adapters(
            model, towers=list(facts["towers"]), **facts["options"]
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The adapters in {path} cannot be attached to this model, or their options"
            f" are damaged ({error})."
        ) from error
    try:
        with naming(path, "adapters of this model"):
            adapters.load_adapter_state_dict(state, check_base)
    except BaseException:
        adapters.detach()
        raise
    return adapters
