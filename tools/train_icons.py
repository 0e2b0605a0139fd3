"""Train the shipped `icons` weights of the tiny presets: they know, but no emoji.

    pip install resvg-py scipy
    python tools/train_icons.py ICONS --download     # all presets, hours
    python tools/train_icons.py ICONS --models tiny-emoji --iterations 50 --out /tmp/w

``ICONS`` is the folder of the unpacked package and what is made from it: the drawings
(once, some minutes), and a run per preset that goes on where it was stopped. The result
is ``<preset>-icons.safetensors`` (fp16) and ``icons.json`` (settings and scores) in the
package's data folder, and the sheet of held-out icons with its notice in that of the
data sets. A model is trained on icons and on the emoji of 2010 (Noto and OpenMoji), and
tested on Twemoji drawings, a style it never saw.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import icon_web
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
PACKAGE_FOLDER = Path(__file__).parents[1] / "avalanche_clip"
WEIGHTS = PACKAGE_FOLDER / "models" / "data"
SHEETS = PACKAGE_FOLDER / "benchmarks" / "datasets" / "data"
PRESETS = ("tiny-emoji", "tiny-emoji-vit")
FIRST_ID = 1_000_000  # of training samples; those of emoji are smaller
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


class Coloured:
    """Colour the icons of one colour at random, then transform as a model wants.

    The ink is black, dark, of any colour, or a darker shade of the largest area it
    encloses; enclosed areas get colours of their own or stay white. Behind some
    drawings is a pale background. Other pictures are left as they are.

    :param transform: applied to the coloured picture.

    All randomness comes from torch's generator.
    """

    deterministic = False
    BLACK, DARK, ANY = 0.15, 0.35, 0.3  # shares of inks; the rest has shades
    FILLED = 0.7
    BACKGROUND = 0.15

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA"):
            image = self.colour(image)
        return self.transform(image)

    def colour(self, icon: Image.Image) -> Image.Image:
        """Return an icon in RGB."""
        kind, back, *inks = torch.rand(12).tolist()
        pixels = np.asarray(icon)
        alpha = pixels[..., -1:].astype(np.float32) / 255
        white = np.full(3, 255.0)
        paper = white
        if back < self.BACKGROUND:
            paper = _colour(inks[0], 0.05 + 0.35 * inks[1], 0.8 + 0.2 * inks[2])
        if icon.mode == "RGBA":
            shown, inside = pixels[..., :3], paper
        else:
            areas = pixels[..., 0]
            draws = torch.rand(icon_web.MOST_AREAS, 4).tolist()
            fills = [_bright(d[:3]) if d[3] < self.FILLED else white for d in draws]
            shown = self._ink(kind, inks[3:], fills[0] if areas.any() else None)
            inside = np.stack([paper, *(fills if kind >= self.BLACK else [paper] * 7)])[
                areas
            ]
        mixed = shown * alpha + inside * (1 - alpha)
        return Image.fromarray((mixed + 0.5).clip(0, 255).astype(np.uint8))

    def _ink(
        self, kind: float, draws: Sequence[float], fill: np.ndarray | None
    ) -> np.ndarray:
        if kind < self.BLACK:
            return np.zeros(3)
        if kind < self.BLACK + self.DARK:
            return _colour(draws[0], draws[1], 0.45 * draws[2])
        if kind < self.BLACK + self.DARK + self.ANY or fill is None:
            return _bright(draws)
        return (0.6 + 0.4 * draws[0]) * fill

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform!r})"


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _bright(draws: Sequence[float]) -> np.ndarray:
    return _colour(draws[0], 0.25 + 0.75 * draws[1], 0.55 + 0.45 * draws[2])


class ShuffledWords:
    """Now and then shuffle the words of the caption that is drawn.

    Icons say "tree evergreen" where emoji say "evergreen tree".

    :param choose: draws one caption of several.
    :param share: how often words are shuffled.
    """

    def __init__(self, choose: Any, share: float) -> None:
        self.choose = choose
        self.share = share

    def __call__(self, captions: Any) -> str:
        caption: str = self.choose(captions)
        words = caption.split()
        if len(words) < 2 or float(torch.rand(())) >= self.share:
            return caption
        return " ".join(words[i] for i in torch.randperm(len(words)).tolist())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.choose!r}, {self.share})"


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


def scenario(icons: icon_web.DrawnIcons) -> Any:
    """One training on all drawings; tested on later emoji, one group at a time.

    R@1 from image to text of an experience of ``test`` is zero-shot accuracy with the
    names of the group's emoji as classes.
    """
    from avalanche_clip.benchmarks import emoji_dataset, make_image_text_dataset
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario

    web = Web(icons, RECIPE["colour_times"], RECIPE["emoji_times"])
    table = load_emoji_table()
    ids = FIRST_ID + np.arange(len(web))
    train = make_image_text_dataset(web, targets=web.targets, sample_ids=ids)
    later = table.step > 0
    tests = [
        emoji_dataset(["twemoji"], np.flatnonzero(later & (table.group == group)))
        for group in range(len(table.groups))
    ]
    return make_scenario(
        {
            "train": [make_experience(train)],
            "test": [make_experience(test) for test in tests],
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
    from avalanche_clip.training.plugins import ProgressPlugin

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
        plugins=[ProgressPlugin(description=preset)],
        evaluator=EvaluationPlugin(retrieval_plugin_metrics()),
    )
    result = run_stream(
        strategy, benchmark, out, resume=True, checkpoint_iterations=250
    )
    return model, result


def write_held_out(icons: icon_web.DrawnIcons, sets: Sequence[Any], out: Path) -> None:
    """Write a sheet with one drawing per held-out name, its names and its notice.

    :param icons: the held-out ones.
    :param sets: of the package, for authors and licences.
    """
    by_name: dict[str, list[int]] = {}
    for item, name in enumerate(icons.captions):
        by_name.setdefault(name, []).append(item)
    columns = math.isqrt(len(by_name) - 1) + 1
    rows, side = -(-len(by_name) // columns), icon_web.SIDE
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    used = []
    for place, (name, items) in enumerate(sorted(by_name.items())):
        chosen = min(
            items, key=lambda item: icon_web.share(icons.prefixes[item] + name)
        )
        used.append(icons.prefixes[chosen])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(2**32 * icon_web.share(name)))
            tile = Coloured(None).colour(icons[chosen][0])
        sheet.paste(tile, (place % columns * side, place // columns * side))
    sheet.save(out / "icons_held_out.webp", "WEBP", quality=90, method=6)
    table = {"names": sorted(by_name), "sets": used}
    text = json.dumps(table, indent=0, sort_keys=True)
    (out / "icons_held_out.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"{one.info['name']} ({one.prefix}), {credit(one.info)}" for one in sets]
    drawn = [line for one, line in zip(sets, lines, strict=True) if one.prefix in used]
    (out / "NOTICE_icons").write_text("\n".join([HEAD, *drawn, ""]), encoding="utf-8")


HEAD = f"""Held-out icons: sources and licences
====================================

icons_held_out.webp holds one icon per name, 48 x 48 pixels, made by
tools/train_icons.py from the npm package {icon_web.PACKAGE} {icon_web.VERSION}. What
was changed: each icon was zoomed to what is drawn, given colours where it had none
of its own, put on a plain background and compressed as lossy WebP. The sets, by
their authors, under their own licences:
"""


def credit(info: dict[str, Any]) -> str:
    """Return author, licence and address of a set."""
    author, licence = info["author"], info["license"]
    where = author.get("url") or licence.get("url", "")
    return f"by {author['name']}: {licence['spdx']}, {where}"


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, and write the weights and what they score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("icons", type=Path, help="folder of the package and the runs")
    parser.add_argument("--download", action="store_true", help="fetch the package")
    parser.add_argument("--models", default=",".join(PRESETS))
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(argv)

    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.models import save_weights

    torch.set_flush_denormal(True)
    drawn = options.icons / "drawn"
    if not (drawn / "drawings.json").is_file():
        root = options.icons / "package"
        sets = icon_web.read_sets(
            icon_web.download(options.icons) if options.download else root
        )
        table = load_emoji_table()
        flags = icon_web.flag_names(table.ids, table.names)
        chosen = icon_web.choose(sets, flags, RECIPE["least_sets"])
        count = icon_web.write_drawings(drawn, icon_web.draw_all(sets, chosen))
        print(f"{count} drawings in {drawn}")
    icons = icon_web.DrawnIcons(drawn)
    options.out.mkdir(parents=True, exist_ok=True)
    for preset in options.models.split(","):
        run = options.icons / f"{preset}-{options.iterations}"
        model, result = train(preset, icons, options.iterations, run)
        path = options.out / f"{preset}-icons.safetensors"
        save_weights(model, path, precision="fp16")
        accuracy = result.matrix("image_to_text_R@1")[-1]
        print(preset, [round(100 * float(value), 1) for value in accuracy], path)


if __name__ == "__main__":
    main()
