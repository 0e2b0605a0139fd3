"""Train the shipped `emoji-2010` weights of the two tiny presets.

    python tools/train_emoji_2010.py                    # both, about 10 minutes
    python tools/train_emoji_2010.py --models tiny-emoji --iterations 50 --out /tmp/w

Trains each preset from random weights on the 719 emoji of 2010 (Noto and
OpenMoji drawings, names and keywords), tests it on Twemoji drawings, and writes
`<preset>-emoji-2010.safetensors` (fp16) and `emoji-2010.json` (settings and
measured scores) into the package's data folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).parents[1] / "avalanche_clip" / "models" / "data"
PRESETS = ("tiny-emoji", "tiny-emoji-vit")
RECIPE: dict[str, Any] = {
    "train_mb_size": 128,
    "lr": 1e-3,
    "weight_decay": 0.1,
    "warmup_iterations": 50,
    "name_probability": 0.9,
    "seed": 0,
}


def train(preset: str, iterations: int) -> tuple[Any, dict[str, Any]]:
    """Train one preset; return the model and its scores."""
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.benchmarks import RandomCaption, prepare_benchmark, tic_emoji
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.training import Sequential
    from avalanche_clip.training.plugins import ProgressPlugin
    from avalanche_clip.training.templates.optim import clip_param_groups

    torch.manual_seed(RECIPE["seed"])
    model = create_dual_encoder(preset)
    benchmark = prepare_benchmark(
        tic_emoji(),
        model,
        train_text_transform=RandomCaption(RECIPE["name_probability"]),
    )
    strategy = Sequential(
        model=model,
        optimizer=partial(
            torch.optim.AdamW, lr=RECIPE["lr"], betas=(0.9, 0.98), eps=1e-6, fused=True
        ),
        param_groups=partial(clip_param_groups, weight_decay=RECIPE["weight_decay"]),
        train_mb_size=RECIPE["train_mb_size"],
        budget_iterations=iterations,
        warmup_iterations=min(RECIPE["warmup_iterations"], iterations - 1),
        positives="targets",
        seed=RECIPE["seed"],
        plugins=[ProgressPlugin(description=preset)],
        evaluator=EvaluationPlugin(),
    )
    begin = time.perf_counter()
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    seconds = time.perf_counter() - begin
    scores = score(model, benchmark)
    return model, {"iterations": iterations, "seconds": round(seconds), **scores}


def score(model: Any, benchmark: Any) -> dict[str, Any]:
    """Recall at 1 on each time step and on the whole gallery, in percent."""
    from avalanche_clip.evaluation.loop import evaluate_retrieval

    found: dict[str, Any] = {}
    for name in ("test", "gallery"):
        results = [
            evaluate_retrieval(model, e.dataset, batch_size=256)
            for e in benchmark.streams[name]
        ]
        for key in ("image_to_text_R@1", "text_to_image_R@1"):
            found[f"{name} {key}"] = [round(100 * r[key], 1) for r in results]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure after rounding to fp16, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(PRESETS))
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--out", type=Path, default=DATA)
    options = parser.parse_args(argv)

    from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji
    from avalanche_clip.models import create_dual_encoder, save_weights

    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    side = options.out / "emoji-2010.json"
    notes = json.loads(side.read_text()) if side.exists() else {}
    for preset in options.models.split(","):
        model, _ = trained = train(preset, options.iterations)
        path = options.out / f"{preset}-emoji-2010.safetensors"
        save_weights(model, path, precision="fp16")
        stored = create_dual_encoder(preset, pretrained=str(path))
        measured = score(stored, prepare_benchmark(tic_emoji(), stored))
        notes[preset] = {**trained[1], **measured, "recipe": RECIPE}
        side.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
        print(preset, json.dumps(notes[preset], indent=1))


if __name__ == "__main__":
    main()
