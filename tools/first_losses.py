"""Record the first losses of all methods, to see whether a change alters training.

Every named strategy is trained on the small streams of ``kill_and_resume.py``, and
the studies on emoji with their defaults, ten updates in each of the first two
experiences. Losses and a hash of the weights after them are kept to the last bit;
they depend on the machine, so record and compare on the same one. Settings that a study
searches are named here: another search is no change of the training.

    python tools/first_losses.py --out before.json
    python tools/first_losses.py --against before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

STEPS, UPDATES = 2, 10
STUDIES: dict[str, Sequence[str]] = {
    "tic_emoji": (
        "sequential",
        "patching",
        "cumulative-all",
        "cumulative-equal",
        "restart",
        "lwf",
        "ewc",
    ),
    "alignment": ("mod-x:20", "lwf:1", "vr-lwf:1", "zscl:0.1", "replay"),
    "languages_emoji": ("teir", "cll-clip", "fine-tune", "frozen"),
    "multi_domain_emoji": (
        "moe-adapters:7e-3:16",
        "fine-tuning:1e-3",
        "moe-no-freeze:7e-3:16",
    ),
}
RATE = 3e-4
"""Learning rate of the study of alignment."""


class Recorder(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Keeps the loss of each update."""

    stateless = True

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[str] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Note the loss to the last bit."""
        self.losses.append(float(strategy.loss.detach().sum()).hex())


class Recorded(Exception):
    """Ends a study when its losses are known."""


def weights_hash(model: Any) -> str:
    """Return a hash of all parameters and buffers, which names do not enter."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(strategy: Any, benchmark: Any) -> dict[str, Any]:
    """Train the first experiences for a few updates each."""
    recorder = Recorder()
    strategy.plugins.append(recorder)
    strategy.compute.iterations = UPDATES
    for name in ("warmup_iterations", "later_warmup_iterations"):
        setattr(strategy, name, min(getattr(strategy, name), UPDATES - 1))
    for experience in list(benchmark.train_stream)[:STEPS]:
        strategy.train(experience)
    return {"losses": recorder.losses, "weights": weights_hash(strategy.model)}


def small(method: str) -> dict[str, Any]:
    """A named strategy on the small streams."""
    import kill_and_resume

    return train(*kill_and_resume.build(method, []))


def study(name: str, method: str) -> dict[str, Any]:
    """A method of a study, with the study's defaults."""
    from importlib import import_module

    from avalanche_clip import training

    module, found = import_module(name), {}

    def instead(strategy: Any, benchmark: Any, *args: Any, **kwargs: Any) -> None:
        found.update(train(strategy, benchmark))
        raise Recorded

    run_stream, training.run_stream = training.run_stream, instead
    config = getattr(module, "DEMO_CONFIG", None) or module.Config()
    stream = ()
    if name == "alignment":
        config, stream = module.configured(config, method, RATE), ("time",)
    try:
        with tempfile.TemporaryDirectory() as folder:
            module.run(config, *stream, method, folder)
    except Recorded:
        pass
    finally:
        training.run_stream = run_stream
    return found


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each case and the function that trains it."""
    import kill_and_resume

    for method in kill_and_resume.methods():
        yield method, lambda method=method: small(method)
    for name, methods in STUDIES.items():
        for method in methods:
            yield f"{name}/{method}", lambda n=name, m=method: study(n, m)


def difference(old: dict[str, Any], new: dict[str, Any]) -> float:
    """Return the largest relative difference of the losses, 0 for equal bits."""
    pairs = [
        (float.fromhex(a), float.fromhex(b))
        for a, b in zip(old["losses"], new["losses"])
    ]
    if len(old["losses"]) != len(new["losses"]):
        return float("inf")
    return max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs), default=0.0)


def main() -> int:
    """Record, or compare and return the number of cases that differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file to be written")
    parser.add_argument("--against", type=Path, help="file to be compared with")
    parser.add_argument("--only", default="", help="part of the names of the cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    before = json.loads(options.against.read_text()) if options.against else {}
    found, wrong = {}, 0
    for name, run in cases():
        if options.only not in name:
            continue
        found[name] = run()
        line = f"{name}: {len(found[name]['losses'])} losses"
        if before and name not in before:
            line += ", not in the file compared with"
        elif before:
            gap = difference(before[name], found[name])
            same = found[name]["weights"] == before[name]["weights"]
            wrong += gap > 0 or not same
            line += f", difference {gap:.1e}, weights {'same' if same else 'DIFFER'}"
        print(line, flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
