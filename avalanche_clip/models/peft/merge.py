"""Updates put into the weights they belong to."""

from __future__ import annotations

from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.attached import attached
from avalanche_clip.models.peft.branch import require_encoder


def merge_adapters(model: DualEncoder) -> DualEncoder:
    """Put the update of the active id into the model's weights, in place.

    Afterwards the model computes the same (up to rounding, 1e-6) without any branch:
    it has exactly the parameters of the plain model, and its attribute is None.

    :param model: with updates from :func:`attach_lora`, or language adapters of the
        kind ``"lora"``.
    :return: the model.
    :raises ValueError: if nothing is attached; for mixtures, bottlenecks and prompts,
        which are no update of a weight; if rows of several ids, or none at all, are
        in use. The model is then unchanged.

    Source: Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685), section 4.1.

    >>> from avalanche_clip import attach_lora, create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> lora = attach_lora(model)
    >>> merge_adapters(model).lora is None
    True
    """
    require_encoder(model)
    sets = attached(model)
    if not sets:
        raise ValueError(
            "Nothing is attached to this model, so there is nothing to merge; attach"
            " updates with attach_lora."
        )
    for one in sets:
        one.check_merge()
    for one in reversed(sets):
        one.merge()
    return model
