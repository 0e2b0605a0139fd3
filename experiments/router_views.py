"""Tests of adapters with several choices of routers, for the studies over domains.

Training does not depend on how routers are chosen in tests. So one training is
tested on copies of the test stream, each with its own :class:`RouterView`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.training import MethodPlugin


@dataclass(frozen=True)
class RouterView:
    """How routers are chosen on a stream, and what its row of a table is called.

    ``rule`` is a value of ``MoEAdaptersPlugin.router_for_eval``, ``granularity`` one
    of ``AutoSelector``; ``calibrated`` takes the threshold from held-out images
    instead of the given one.
    """

    rule: str = "auto"
    granularity: str = "sample"
    calibrated: bool = False
    label: str = ""


def copy_test_stream(benchmark: Any, names: Iterable[str]) -> Any:
    """Add copies of the test stream; names that exist are left alone."""
    have = benchmark.streams
    copies = {name: have["test"] for name in names if name not in have}
    return make_scenario({**have, **copies}, benchmark)


class RouterViewsPlugin(MethodPlugin, supports_distributed=True):
    """Chooses routers by the name of the tested stream, as ``views`` says.

    Other streams are tested as ``views["test"]`` says.
    """

    stateless = True  # the views come from the command

    def __init__(self, views: Mapping[str, RouterView]):
        super().__init__()
        self.views = dict(views)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Choose as the stream of the tested experience asks for."""
        stream = getattr(strategy.experience, "_origin_stream", None)
        name = getattr(stream, "name", "")
        _choose(strategy.moe, self.views.get(name, self.views["test"]))

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Choose as on ``test`` again, so that checkpoints do not differ."""
        _choose(strategy.moe, self.views["test"])


def _choose(moe: Any, view: RouterView) -> None:
    moe.router_for_eval = view.rule
    if moe.auto_selector is not None:
        moe.auto_selector.granularity = view.granularity
        moe.auto_selector.threshold_kind = "global" if view.calibrated else "given"
