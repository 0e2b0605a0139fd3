"""The expert mixture of one residual block, and the router ids of its tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.moe.mixture import MoEAdapter
from avalanche_clip.models.peft.routes import SKIP, Routes


class BlockMoE(MoEAdapter):
    """The mixture of one block, with the hooks that connect it.

    :param width: channels D.
    :param tower: shared router ids of the tower.
    :param batch_first: False if activations are ``(L, B, D)``.
    :param options: of :class:`MoEAdapter`.
    """

    def __init__(
        self, width: int, tower: Routes, batch_first: bool, **options: Any
    ) -> None:
        super().__init__(width, **options)
        self._tower = tower
        self._batch_first = batch_first
        self._input: Tensor | None = None
        self._exact_attention = False
        self._modes = (True, True)
        self._thawed: list[nn.Parameter] = []

    def connect(self, view: BlockView, exact_attention: bool) -> list[Any]:
        """Become a child of a block and hook into it.

        :param view: the block.
        :param exact_attention: whether the weights of its attention required
            gradients before the adapters came.
        :return: handles of the hooks.
        """
        view.module.add_module("moe", self)
        handles = [
            view.norm2.register_forward_pre_hook(self.take_input),
            view.mlp_out.register_forward_hook(self.add_output),
        ]
        self._exact_attention = exact_attention
        if isinstance(view.attn, nn.MultiheadAttention):
            handles += [
                view.attn.register_forward_pre_hook(self.before_attention),
                view.attn.register_forward_hook(self.after_attention, always_call=True),
            ]
        return handles

    def before_attention(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Let attention round as it did while its weights were trainable.

        Frozen weights make PyTorch 2.15 choose other kernels, which differ in
        the last bits. Where no gradient has to pass, the weights count as
        trainable during the call; elsewhere only fused attention is avoided.
        """
        self._modes = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
        weights = list(module.parameters())
        if not self._exact_attention or any(p.requires_grad for p in weights):
            return
        if torch.is_grad_enabled():
            torch.backends.mha.set_fastpath_enabled(False)
        inputs = [a for a in args if isinstance(a, Tensor)]
        if inputs and not any(a.requires_grad for a in inputs):
            torch.set_grad_enabled(False)
        if not torch.is_grad_enabled():
            self._thawed = weights
            for parameter in weights:
                parameter.requires_grad_(True)

    def after_attention(
        self, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        """Undo :meth:`before_attention`, after errors as well."""
        fast_path, grad = self._modes
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_grad_enabled(grad)
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        self._thawed = []

    def take_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note the input of the second branch (pre-hook of its norm)."""
        self._input = args[0]

    def add_output(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """Add the mixture to the branch; None, so no change, when skipped."""
        x, self._input = self._input, None
        ids = self._tower.current()
        if x is None or (isinstance(ids, int) and ids == SKIP):
            return None
        if self._batch_first:
            return output + self(x, ids).to(output.dtype)
        mixed = self(x.transpose(0, 1), ids).transpose(0, 1)
        return output + mixed.to(output.dtype)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_input"] = None
        return state
