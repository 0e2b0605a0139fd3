"""A run that begins where another one was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.content import content_hash
from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.common.checks import existing_folder, require_type
from avalanche_clip.common.fingerprint import bit_sums
from avalanche_clip.common.ranks import hash_of
from avalanche_clip.common.state_files import CheckpointError, read_state
from avalanche_clip.models.stored import kept_step, take_weights
from avalanche_clip.models.text.token_table import find_token_embedding
from avalanche_clip.training.templates.contract import defines


def preparation(strategy: Any, dataset: Any) -> str:
    """Hash of the data that plugins are prepared on.

    :param strategy: one of whose plugins must do that.
    :param dataset: prepared with the strategy's model.
    :raises ValueError: if no plugin reads them, or they are not prepared.
    """
    give = "one data set, such as prepared_benchmark.train_stream[0].dataset"
    require_type(dataset, AvalancheDataset, "prepare_on", give, error=ValueError)
    if not any(defines(contract, "prepare") for contract in strategy.contracts):
        raise ValueError(
            "prepare_on has no effect: no plugin of the strategy computes anything "
            "before the first step (MethodPlugin.prepare; ContrastiveEWCPlugin does)."
        )
    require_prepared(dataset, strategy.model, captions=strategy.reads_captions)
    return content_hash(dataset)


_GIVE = "a folder of a run, or (folder, step)"


class Source:
    """The model of a stored step of another run.

    :param given: folder of a run, whose last step is taken, or folder and step.
    :param out: folder of the run that begins.
    :raises FileNotFoundError: if there is no such folder.
    :raises ValueError: if it keeps no such step, or is that of the run itself.
    """

    def __init__(self, given: Any, out: Path):
        folder, step = given, None
        if isinstance(given, (tuple, list)):
            if len(given) != 2:
                raise ValueError(f"start_from={given!r} is not {_GIVE}.")
            folder, step = given
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise ValueError(f"start_from={given!r} is not {_GIVE}.")
        self.folder = existing_folder(Path(folder).expanduser(), f"give {_GIVE}")
        if self.folder.resolve() == out.resolve():
            raise ValueError(
                f"start_from={str(folder)!r} is out_dir itself; go on with a run by "
                "resume=True or 'extend', or give another out_dir."
            )
        self.path = kept_step(self.folder, step)
        self.state = read_state(self.path)
        run = self.state["run"]
        if run is None:
            raise ValueError(
                f"{self.path} was not written by run_stream; load it with load_state."
            )
        identity, weights = self.state["identity"], self.state["model"]
        whole = json.dumps(identity, sort_keys=True).encode()
        sums = repr(sorted(bit_sums(weights.items()).items())).encode()
        self.facts: dict[str, Any] = {
            "method": identity["method"],
            "seed": identity["seed"],
            "step": run["next"] - 1 if run["next"] else "before",
            "run": hash_of(whole),
            "weights": hash_of(sums + self.state["base"]["hash"].encode()),
        }

    def record(self) -> dict[str, Any]:
        """What ``results.json`` holds of it."""
        return {"folder": str(self.folder), **self.facts}

    def give(self, strategy: Any) -> None:
        """Put weights, growth and branches into the model of a strategy.

        What it trains stays as it was; branches that it had not are frozen.

        :param strategy: not trained yet.
        :raises CheckpointError: if its model is another one.
        """
        model = strategy.model
        # What differs from the model as it was built is stored with the run.
        strategy.frozen_base.ensure()
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        words = any("base_rows" in stored for stored in self.state["growth"].values())
        if words and find_token_embedding(model) is None:
            raise CheckpointError(
                f"{self.path} has a grown vocabulary, which the data must be prepared "
                f"with: make the model by create_dual_encoder({str(self.folder)!r}, "
                f"step={self.facts['step']!r})."
            )
        try:
            take_weights(model, self.state)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        model.to(strategy.device)
