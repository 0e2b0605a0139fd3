"""Expert mixtures beside the perceptron of every block of a dual encoder.

A block computes ``r = x + attn(norm1(x))`` and then ``r + mlp(norm2(r))``. With
the mixture attached it is ``r + mlp(norm2(r)) + moe(r)``. Two hooks do it: one
before ``norm2`` notes r, one after the last module of the branch adds the
mixture. The adapters are new children ``moe`` of the blocks, so all parameters
keep their names.

Source: Yu et al., CVPR 2024 (MoE-Adapters, arXiv 2403.11549) and the released
code; the router id is part of the model here, not of the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.moe import storage as moe_storage
from avalanche_clip.models.moe.adapters import NAME, MoEAdapterSet
from avalanche_clip.models.moe.block import BlockMoE
from avalanche_clip.models.moe.options import NUM_EXPERTS
from avalanche_clip.models.peft.routes import Routes

TOWERS = ("image", "text")


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
    for bit. (Freezing alone can change the last bit where PyTorch picks another
    kernel for frozen weights: seen in SigLIP's pooling, torch 2.15.) All experts and
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
    if getattr(model, NAME, None) is not None:
        raise ValueError(
            "The model has expert adapters already; use model.moe_adapters, or detach"
            " them before."
        )
    names = [towers] if isinstance(towers, str) else list(dict.fromkeys(towers))
    if not names:
        raise ValueError(f"towers is empty; give one or both of {list(TOWERS)}.")
    options |= {"num_experts": num_experts, "top_k": top_k, "bottleneck": bottleneck}
    states = {tower: Routes() for tower in names}
    adapters = {
        tower: [
            BlockMoE(view.width, states[tower], view.batch_first, **options).to(
                device=view.norm2.weight.device  # type: ignore[arg-type]
            )
            for view in model.blocks(tower)
        ]
        for tower in names
    }
    result = MoEAdapterSet(model, adapters, states)
    result.connect()
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
    if getattr(model, NAME, None) is not None:
        raise ValueError(
            "The model has expert adapters already; use model.moe_adapters.load, or"
            " detach them before."
        )
    state = moe_storage.read(path, verify=verify)
    facts, _ = moe_storage.checked(state)
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
        with moe_storage.naming(path, "adapters of this model"):
            adapters.load_adapter_state_dict(state, check_base)
    except BaseException:
        adapters.detach()
        raise
    return adapters
