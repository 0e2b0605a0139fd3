"""All expert mixtures of a dual encoder: routers, tasks, state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.models.moe import storage as moe_storage
from avalanche_clip.models.moe.block import BlockMoE
from avalanche_clip.models.moe.mixture import set_trainable
from avalanche_clip.models.moe.progress import AdapterProgress
from avalanche_clip.models.peft.routes import SKIP, Routes, RowIds, parse_ids

NAME = "moe_adapters"
"""Child of the model that holds the set."""


class MoEAdapterSet(AdapterProgress):
    """All expert mixtures of a dual encoder; made by :func:`attach_moe_adapters`.

    It is the child ``moe_adapters`` of the model and holds no parameters: the
    adapters belong to the blocks. Each tower has its own router id (or ids),
    0 at first; copies of the model have their own. Under -1 nothing is computed
    and features equal those of the model without adapters bit for bit.

    :param model: the model.
    :param adapters: mixtures per tower, first block to last.
    :param towers: router ids per tower.
    """

    def __init__(
        self,
        model: DualEncoder,
        adapters: dict[str, list[BlockMoE]],
        towers: dict[str, Routes],
    ) -> None:
        super().__init__()
        # In containers, so that neither is registered a second time.
        self._owner = (model,)
        self._adapters = adapters
        self._towers = towers
        self._handles: list[Any] = []
        self._flags: dict[str, bool] = {}
        self._still: set[str] = set()
        self._cache = FingerprintCache()

    # ------------------------------------------------------------- description
    @property
    def model(self) -> DualEncoder:
        """The model the adapters belong to."""
        return self._owner[0]

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers that have adapters."""
        return tuple(self._adapters)

    def adapters(self, tower: str | None = None) -> list[BlockMoE]:
        """List the mixtures of one tower, or of all, first block to last."""
        if tower is None:
            return [a for blocks in self._adapters.values() for a in blocks]
        return list(self._adapters[self._check_tower(tower)])

    @property
    def num_routers(self) -> int:
        """Number of routers of every block."""
        return self.adapters()[0].num_routers

    @property
    def active_router(self) -> int:
        """The router in training."""
        return self.adapters()[0].active_router

    @property
    def num_parameters(self) -> int:
        """Numbers in all experts and routers."""
        return sum(p.numel() for a in self.adapters() for p in a.parameters())

    @property
    def num_trainable(self) -> int:
        """Numbers in unfrozen experts and the active router."""
        return sum(parameter.numel() for _, parameter in self.trainable_parameters())

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List what trains, with names as in ``model.named_parameters()``."""
        return [
            (f"{prefix}.{name}", parameter)
            for prefix, adapter in self._named()
            for name, parameter in adapter.named_parameters()
            if parameter.requires_grad
        ]

    def _named(self) -> Iterator[tuple[str, BlockMoE]]:
        for name, module in self.model.named_modules():
            if isinstance(module, BlockMoE):
                yield name, module

    def _check_tower(self, tower: str) -> str:
        if tower not in self._adapters:
            raise ValueError(
                f"tower={tower!r} has no adapters; use one of {list(self._adapters)}."
            )
        return tower

    # ----------------------------------------------------------------- routers
    @property
    def routers(self) -> dict[str, int | Tensor]:
        """Current router id of each tower, or ids per row."""
        return {t: _plain(state.ids) for t, state in self._towers.items()}

    def set_router(
        self, router: Any = None, *, image: Any = None, text: Any = None
    ) -> None:
        """Choose the routers of the next passes.

        :param router: id for both towers; -1 skips the mixture everywhere.
        :param image: id, or LongTensor with one id per image, for the image
            tower alone.
        :param text: id, or LongTensor with one id per text, for the text tower
            alone. What is None stays as it is.
        :raises ValueError: for unknown ids and towers without adapters.
        """
        chosen = {} if router is None else dict.fromkeys(self._towers, router)
        own = {"image": image, "text": text}
        chosen |= {t: ids for t, ids in own.items() if ids is not None}
        parsed = {self._check_tower(t): parse_ids(ids) for t, ids in chosen.items()}
        for tower, ids in parsed.items():
            present = [ids] if isinstance(ids, int) else ids.present
            self._adapters[tower][0].check_known(present)
        for tower, ids in parsed.items():
            self._towers[tower].ids = ids

    @contextmanager
    def using_router(
        self, router: Any = None, *, image: Any = None, text: Any = None
    ) -> Iterator[MoEAdapterSet]:
        """Choose routers as :meth:`set_router` does, and restore them on exit."""
        before = {t: state.ids for t, state in self._towers.items()}
        try:
            self.set_router(router, image=image, text=text)
            yield self
        finally:
            for tower, ids in before.items():
                self._towers[tower].ids = ids

    def add_router(self) -> int:
        """Add a router to every block; it does not train before its task starts.

        :return: its id.
        """
        number = self.num_routers
        for adapter in self.adapters():
            set_trainable(adapter.routers[adapter.add_router()], False)
        return number

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
            router = self.num_routers if self._started or self.learned else 0
        if not 0 <= router <= self.num_routers:
            raise ValueError(
                f"router={router} cannot be started; choose 0 to {self.num_routers}"
                " (the next new one)."
            )
        if router == self.num_routers:
            self.add_router()
        for adapter in self.adapters():
            adapter.activate_router(router)
            adapter.clear_counts()
            adapter.clear_balance()
        self.counting = self._started = self._in_task = True
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
            tower: [adapter.freeze_most_used(count, rank_over) for adapter in blocks]
            for tower, blocks in self._adapters.items()
        }
        for adapter in self.adapters():
            adapter.clear_counts()
            adapter.clear_balance()
            set_trainable(adapter.routers[adapter.active_router], False)
        self.counting = self._in_task = False
        if self.active_router not in self.learned:
            self.learned.append(self.active_router)
        return frozen

    def share_counts(self) -> None:
        """Add up what each process has counted since the last call.

        Afterwards the counters of all processes are the same. All of them must
        call it together; with a single one nothing happens.
        """
        running = dist.is_available() and dist.is_initialized()
        if not running or dist.get_world_size() == 1:
            return
        adapters = self.adapters()
        device = adapters[0].frozen.device
        before = torch.stack([a._shared.to(device) for a in adapters])
        added = torch.stack([a.counts.to(device) for a in adapters]) - before
        dist.all_reduce(added)
        for adapter, counts in zip(adapters, before + added, strict=True):
            adapter.counts = adapter._shared = counts.clone()

    @contextmanager
    def paused(self, tower: str) -> Iterator[None]:
        """Let passes of one tower neither count nor collect the balance loss."""
        adapters = self._adapters.get(tower, [])
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
        running = self._in_task or not self._started
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

    # ----------------------------------------------------------------- storage
    def base_fingerprint(self) -> str:
        """Return a content hash of the wrapped model without the adapters."""
        return self._hash(self.model._tensors_of(None), ())

    def fingerprint(self, tower: str, router: int) -> str:
        """Return a content hash of what decides a tower's features.

        :param tower: ``"image"`` or ``"text"``.
        :param router: id; under -1 the base weights alone count, so the hash
            stays the same while the adapters train.
        :return: 32 hexadecimal digits. Other routers, counters and frozen
            masks are not part of it.
        """
        tensors = self.model._tensors_of(tower)
        if router == SKIP or tower not in self._adapters:
            return self._hash(tensors, ())
        self._adapters[tower][0].check_known([router])
        return self._hash(tensors, ("experts.", f"routers.{router}."))

    def _hash(
        self, tensors: Iterable[tuple[str, Tensor]], kinds: tuple[str, ...]
    ) -> str:
        prefixes = tuple(f"{name}." for name, _ in self._named())
        wanted = tuple(prefix + kind for prefix in prefixes for kind in kinds)
        return self._cache(
            (name, tensor)
            for name, tensor in tensors
            if not name.startswith(f"{NAME}.")
            and (not name.startswith(prefixes) or name.startswith(wanted))
        )

    def adapter_state_dict(self) -> dict[str, Any]:
        """Return all adapter state, and the hash of the base it belongs to.

        :return: ``{"facts": numbers, strings and lists, "tensors": by name}``;
            plain data.
        """
        return moe_storage.collect(self)

    def load_adapter_state_dict(
        self, state: dict[str, Any], check_base: bool = True
    ) -> None:
        """Put back what :meth:`adapter_state_dict` returned, all of it or nothing.

        The number of routers becomes that of the state.

        :param state: the state.
        :param check_base: refuse adapters that were trained on other weights.
        :raises ValueError: if the base, the options or the blocks differ.
        """
        moe_storage.restore(self, state, check_base)

    def save(self, path: str | Path) -> None:
        """Write the adapters alone as one safetensors file.

        :param path: ends with ``.safetensors``; replaced if it exists.
        """
        moe_storage.write(self.adapter_state_dict(), path)

    def load(
        self, path: str | Path, check_base: bool = True, *, verify: bool = True
    ) -> None:
        """Read a file written by :meth:`save`.

        :param path: the file.
        :param check_base: refuse adapters that were trained on other weights.
        :param verify: compare the checksums of all tensors, even of large ones.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if it is damaged, else as :meth:`load_adapter_state_dict`.
        """
        state = moe_storage.read(path, verify=verify)
        with moe_storage.naming(path, "adapters of this model"):
            self.load_adapter_state_dict(state, check_base)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_cache"] = FingerprintCache()
        return state

    # ------------------------------------------------------------------ attach
    def connect(self) -> None:
        """Freeze the model and hook the adapters into its blocks, once."""
        model = self.model
        self._flags = {n: p.requires_grad for n, p in model.named_parameters()}
        self._still = set(model._still)
        views = {tower: model.blocks(tower) for tower in self._adapters}
        exact = {
            tower: [any(p.requires_grad for p in v.attn.parameters()) for v in found]
            for tower, found in views.items()
        }
        model.freeze()
        for tower, blocks in self._adapters.items():
            parts = zip(blocks, views[tower], exact[tower], strict=True)
            for adapter, view, was_trainable in parts:
                self._handles += adapter.connect(view, was_trainable)
        setattr(model, NAME, self)
        self._handles += [
            model.register_forward_pre_hook(self.before_forward),
            model.register_forward_hook(self.after_forward),
            model.register_load_state_dict_pre_hook(self.before_load),
        ]
        model.train(model.training)

    def detach(self) -> None:
        """Remove the adapters from the model and restore what trained before.

        The model then equals the one before :func:`attach_moe_adapters`.
        """
        model = self.model
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for tower in self._adapters:
            for view in model.blocks(tower):
                del view.module.moe
        setattr(model, NAME, None)
        for name, parameter in model.named_parameters():
            if name in self._flags:
                parameter.requires_grad_(self._flags[name])
        model._still = set(self._still)
        model.train(model.training)


def _plain(ids: int | RowIds) -> int | Tensor:
    return ids if isinstance(ids, int) else ids.ids
