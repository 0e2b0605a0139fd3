"""Route texts to the adapters of their language (MLA-style and LoRA baselines).

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186), baselines.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.models.peft.attached import attachment
from avalanche_clip.models.peft.language import attach_language_adapters
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.options import require_options


class LanguageAdapterPlugin(MethodPlugin, supports_distributed=True):
    """Train one set of adapters per language and choose it by language code.

    The adapters of a language are made before its experience, trained with whatever
    else the strategy trains, and frozen afterwards. In training and evaluation each
    text passes those of its own language, which the data must name; texts of languages
    not learned yet pass the base tower.

    Memory: the adapters. Time: one small product per block, and per language where a
    batch holds several.

    :param kind: see :func:`attach_language_adapters`; used when the model has no
        adapters yet.
    :param options: further arguments of that function.
    """

    keeps_per_weight_state = False
    routes_batches = True

    def __init__(self, kind: str = "mla", **options: Any):
        super().__init__()
        self._english = -1
        self.kind = kind
        what, taken = "LanguageAdapterPlugin", ("model", "kind")
        self.options = require_options(what, options, attach_language_adapters, taken)

    def check_compatible(self, strategy: Any) -> None:
        """Attach the adapters if the model has none."""
        if attachment(strategy.model, "language_adapters") is None:
            attach_language_adapters(strategy.model, self.kind, **self.options)

    def check_suites(self, strategy: Any, benchmark: Any) -> None:
        """Note the code of English, the language of suites.

        :param benchmark: whose ``language_codes`` may have ``"en"``; else, and before
            it is learned, texts of suites pass the base tower.
        """
        self._english = getattr(benchmark, "language_codes", {}).get("en", -1)

    def image_variants(self, strategy: Any) -> Tensor:
        """English for all images."""
        images = strategy.mb_x["image"]
        return torch.full((len(images),), self._english, device=images.device)

    def variant_context(
        self, strategy: Any, variant: int
    ) -> AbstractContextManager[Any]:
        """Let texts pass the adapters of a language, if it has some."""
        found: Any = strategy.model.language_adapters.languages(variant)
        return found  # type: ignore[no-any-return]

    def route_batch(self, strategy: Any, batch: Any) -> None:
        """Choose the adapters of the texts of a batch.

        :param strategy: whose model is used.
        :param batch: with ``language`` and ``owner``.
        :raises ValueError: if the data do not name their languages.
        """
        if strategy.experience is None and "text" not in batch:
            return  # images of a suite, see image_variants
        codes: Tensor | None = batch.get("language")
        if codes is None:
            raise ValueError(
                "Language adapters need the language of each sample, but the batch has "
                f"{sorted(batch)}; make the stream with multilingual_benchmark."
            )
        strategy.model.language_adapters.set_languages(codes[batch["owner"]])

    def end_route(self, strategy: Any) -> None:
        """Go back to the base tower."""
        strategy.model.language_adapters.set_languages(None)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the adapters are part of the model."""
        return {}
