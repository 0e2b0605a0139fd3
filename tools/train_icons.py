"""Train the shipped `icons` weights of the tiny presets: they know, but no emoji.

    pip install resvg-py scipy
    python tools/train_icons.py ICONS --download       # both presets, hours
    python tools/train_icons.py ICONS --models tiny-emoji --iterations 50 --out /tmp/w

``ICONS`` is the folder of the unpacked package and what is made from it: the drawings
(once, some minutes), and a run per preset that goes on where it was stopped; of a run
that is finished only the scores are taken again. A model is trained on icons and on the
emoji of 2010 (Noto and OpenMoji), and tested on Twemoji drawings, a style it never saw,
and on icons of names that nothing taught it.

Written into the package: the sheet of held-out icons, ``<preset>-icons.safetensors``
(fp16), ``icons.json`` (settings and scores), and notices of all sets of icons. With
``--out`` the sheet stays as it is, and the rest goes there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import icon_sheet
import icon_web
import numpy as np
import torch
from icon_colours import Coloured, ShuffledWords
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
PACKAGE_FOLDER = Path(__file__).parents[1] / "avalanche_clip"
WEIGHTS = PACKAGE_FOLDER / "models" / "data"
SHEETS = PACKAGE_FOLDER / "benchmarks" / "datasets" / "data"
ITERATIONS = {"tiny-emoji": 20_000, "tiny-emoji-vit": 8_000}  # hours, of two cores
FIRST_ID = 1_000_000  # of training samples; those of emoji and held-out icons are less
RECIPE: dict[str, Any] = {
    "least_sets": 3,
    "colour_times": 3,
    "emoji_times": 4,
    "shuffled": 0.3,
    "train_mb_size": 128,
    "lr": 3e-3,
    "weight_decay": 0.3,
    "warmup_iterations": 100,
    "name_probability": 0.8,
    "seed": 0,
    "augmentation": {
        "scale": (0.8, 1.15),
        "translate": 0.07,
        "degrees": 10.0,
        "brightness": 0.15,
        "contrast": 0.15,
        "saturation": 0.15,
    },
}


class Web:
    """Icons and the emoji of 2010 as pairs of drawing and captions.

    Icons in colours, flags among them, and emoji come several times: they are few, and
    nearest to what is to be known.

    :param icons: those that are trained on.
    :param colour_times: how often an icon in colours comes.
    :param emoji_times: how often an emoji comes.

    :ivar targets: number of the concept of each item: equal names are one.
    """

    def __init__(
        self, icons: icon_web.DrawnIcons, colour_times: int, emoji_times: int
    ) -> None:
        from avalanche_clip.benchmarks.datasets import EmojiPairs, load_emoji_table

        first = np.flatnonzero(load_emoji_table().step == 0)
        self.icons = icons
        self.emoji = EmojiPairs(("noto", "openmoji"), first, captions="all")
        times = np.where(icons.one_colour, 1, colour_times)
        drawn = np.repeat(np.arange(len(icons)), times)
        emoji = len(icons) + np.tile(np.arange(len(self.emoji)), emoji_times)
        self.items = np.concatenate([drawn, emoji])
        names = [
            *icons.captions,
            *(self.emoji[i][1][0] for i in range(len(self.emoji))),
        ]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.targets = np.array([numbers[name] for name in names])[self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        item = int(self.items[index])
        if item < len(self.icons):
            return self.icons[item]
        return self.emoji[item - len(self.icons)]


def later_groups() -> list[Any]:
    """Test sets: the emoji after 2010 in the unseen style, one set per group."""
    from avalanche_clip.benchmarks import emoji_dataset
    from avalanche_clip.benchmarks.datasets import load_emoji_table

    table = load_emoji_table()
    later = table.step > 0
    return [
        emoji_dataset(["twemoji"], np.flatnonzero(later & (table.group == group)))
        for group in range(len(table.groups))
    ]


def scenario(icons: icon_web.DrawnIcons) -> Any:
    """One training on all drawings; tested on later emoji, one group at a time.

    R@1 from image to text of an experience of ``test`` is zero-shot accuracy with the
    names of the group's emoji as classes.
    """
    from avalanche_clip.benchmarks import (
        make_experience,
        make_image_text_dataset,
        make_scenario,
    )

    web = Web(icons, RECIPE["colour_times"], RECIPE["emoji_times"])
    ids = FIRST_ID + np.arange(len(web))
    train = make_image_text_dataset(web, targets=web.targets, sample_ids=ids)
    return make_scenario(
        {
            "train": [make_experience(train)],
            "test": [make_experience(test) for test in later_groups()],
        }
    )


def train(preset: str, icons: icon_web.DrawnIcons, iterations: int, out: Path) -> Any:
    """Train one preset, from where it was stopped; return model and result."""
    from avalanche.training.plugins import EvaluationPlugin
    from tic_emoji import Config, build_optimizer

    from avalanche_clip.benchmarks import RandomCaption, prepare_benchmark
    from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
    from avalanche_clip.models import TinyAugmentation, create_dual_encoder
    from avalanche_clip.training import Sequential, run_stream

    torch.manual_seed(RECIPE["seed"])
    model = create_dual_encoder(preset)
    augmentation = TinyAugmentation(**RECIPE["augmentation"])
    benchmark = prepare_benchmark(
        scenario(icons),
        model,
        train_transform=Coloured(model.transform(True, augmentation)),
        train_text_transform=ShuffledWords(
            RandomCaption(RECIPE["name_probability"]), RECIPE["shuffled"]
        ),
    )
    config = Config(
        optimizer="muon", lr=RECIPE["lr"], weight_decay=RECIPE["weight_decay"]
    )
    strategy = Sequential(
        model=model,
        optimizer=build_optimizer(config, model),
        train_mb_size=RECIPE["train_mb_size"],
        eval_mb_size=256,
        budget_iterations=iterations,
        warmup_iterations=min(RECIPE["warmup_iterations"], iterations - 1),
        positives="targets",
        seed=RECIPE["seed"],
        evaluator=EvaluationPlugin(retrieval_plugin_metrics()),
    )
    result = run_stream(
        strategy, benchmark, out, resume=True, checkpoint_iterations=250
    )
    return model, result


def score(model: Any) -> dict[str, Any]:
    """Recall at 1 in percent, as in ``emoji-2010.json``, and what the icons are for.

    From image to text of a group of later emoji, and of held-out icons, it is zero-shot
    accuracy with the names of the group, or of all these icons, as classes.
    """
    from avalanche_clip.benchmarks import (
        held_out_icons,
        make_experience,
        make_scenario,
        prepare_benchmark,
        tic_emoji,
    )
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.evaluation.loop import evaluate_retrieval

    steps, icons = tic_emoji(), held_out_icons()
    streams = {
        "test": steps.test_stream,
        "gallery": steps.streams["gallery"],
        "later groups": [make_experience(data) for data in later_groups()],
        "held-out icons": [make_experience(icons)],
    }
    benchmark = prepare_benchmark(make_scenario({"train": [], **streams}), model)
    found: dict[str, Any] = {"held-out icons": len(icons)}
    for name in streams:
        results = [
            evaluate_retrieval(model, e.dataset, batch_size=256)
            for e in benchmark.streams[name]
        ]
        for key in ("image_to_text_R@1", "text_to_image_R@1"):
            values = [100 * result[key] for result in results]
            found[f"{name} {key}"] = [round(value, 1) for value in values]
            if name == "later groups":
                by_group = dict(zip(load_emoji_table().groups, values))
                means = {"mean": list(by_group.values())}
                # Flags are in the icons too, under these names.
                by_group.pop("Flags")
                means["mean without Flags"] = list(by_group.values())
                found[f"{name} {key}"] = dict(
                    zip(load_emoji_table().groups, found[f"{name} {key}"])
                )
                for label, some in means.items():
                    found[f"{name} {key}, {label}"] = round(float(np.mean(some)), 1)
    return found


def note(path: Path, preset: str, entry: dict[str, Any]) -> None:
    """Set a preset's entry of ``icons.json`` and leave those of others as they are."""
    from avalanche_clip.common.files import write_text

    notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    notes[preset] = entry
    write_text(path, json.dumps(notes, indent=1, sort_keys=True) + "\n")


def draw(folder: Path) -> None:
    """Choose and draw the icons of the package below a folder, unless it is done."""
    from avalanche_clip.benchmarks.datasets import load_emoji_table

    if (folder / "drawn" / "drawings.json").is_file():
        return
    icon_web.require_libraries()
    sets = icon_web.read_sets(folder / "package")
    table = load_emoji_table()
    flags = icon_web.flag_names(table.ids, table.names)
    chosen = icon_web.choose(sets, flags, RECIPE["least_sets"])
    count = icon_web.write_drawings(folder / "drawn", icon_web.draw_all(sets, chosen))
    print(f"{count} drawings in {folder / 'drawn'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, measure after rounding to fp16, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("icons", type=Path, help="folder of the package and the runs")
    parser.add_argument("--download", action="store_true", help="fetch the package")
    parser.add_argument("--models", default=",".join(ITERATIONS))
    parser.add_argument("--iterations", type=int, help="for trials; needs --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    presets = options.models.split(",")
    if unknown := sorted(set(presets) - set(ITERATIONS)):
        parser.error(f"--models {unknown[0]}: known are {', '.join(ITERATIONS)}.")
    if options.iterations is not None and options.out is None:
        parser.error("--iterations is for trials: name their folder with --out.")
    if options.iterations is not None and options.iterations < 2:
        parser.error(f"--iterations {options.iterations}: give at least 2.")

    from avalanche_clip.models import create_dual_encoder, save_weights

    torch.set_flush_denormal(True)
    if options.download:
        icon_web.download(options.icons)
    draw(options.icons)
    drawn = options.icons / "drawn"
    icons = icon_web.DrawnIcons(drawn)
    sets = icon_web.read_sets(options.icons / "package")
    out = WEIGHTS if options.out is None else options.out
    if options.out is None:
        held = icon_web.DrawnIcons(drawn, held_out=True)
        chosen = icon_sheet.choose_held_out(held, icons, sets)
        icon_sheet.write_held_out(held, chosen, sets, SHEETS)
    icon_sheet.write_weights_notice(icons, sets, out)
    for preset in presets:
        iterations = options.iterations or ITERATIONS[preset]
        run = options.icons / f"{preset}-{iterations}"
        model, result = train(preset, icons, iterations, run)
        path = out / f"{preset}-icons.safetensors"
        save_weights(model, path, precision="fp16")
        entry = {
            "recipe": RECIPE,
            "iterations": iterations,
            "seconds": round(sum(result.results["seconds"]["train"])),
            **score(create_dual_encoder(preset, pretrained=str(path))),
        }
        note(out / "icons.json", preset, entry)
        print(preset, json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
