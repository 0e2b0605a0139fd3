"""Write a small TiC-DataComp in the released format, to rehearse the large one.

    python experiments/tic_simulation.py data/simulated --samples 100000

Pictures are the emoji and held-out icons that ship with the package, restyled: on
backgrounds of ten colours, in five poses, moved, scaled and noisy. A caption says name,
colour and pose, so that each pair can be found among those of other years, and so that
learning can be seen. Things come up over the years: a step shows its own new ones in
three pairs of five and those of before in two, and later steps turn and colour more.

::

    train/2016/00000000.tar ...  {uid}-0.jpg, .txt, .json; _stats.json, sizes.json
    train/2017/{0,1}/...         one level more, as the largest scale has it
    eval/retrieval/2016/0.tar    as evaluated; eval/datacompnet/2016 with classes
    tic-datacomp_*               the lists of ids: by year, by month, of evaluation

As in the release, the training shards still hold the pairs of the evaluation sets.
Everything follows from the seed; shards are made side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from command_line import positive, refusals
from PIL import Image

SIZE = 64  # pixels of a side
COLOURS = {
    "white": (255, 255, 255),
    "pink": (255, 175, 200),
    "red": (255, 120, 110),
    "orange": (255, 190, 110),
    "yellow": (255, 245, 130),
    "green": (160, 235, 150),
    "turquoise": (130, 230, 225),
    "blue": (150, 185, 255),
    "violet": (205, 160, 255),
    "grey": (190, 190, 190),
}
POSES = {"upright": 0, "tilted left": 35, "tilted right": -35, "lying": 90}
POSES["upside down"] = 180
CAPTIONS = ("{pose} {name} on {colour}", "{name}, {pose}, {colour} background")
TEMPLATES = ("{c} on white.", "{c}, upright, white background.")
NEW = 0.6  # share of a step's pairs that show what is new in it
KINDS = ("train", "retrieval", "datacompnet")


@dataclass(frozen=True)
class World:
    """What is simulated.

    :ivar samples: training pairs over all steps, those of evaluation not counted.
    :ivar steps: number of time steps, up to the seven of the paper.
    :ivar gallery: evaluation pairs per year and task.
    :ivar shard: training pairs per archive.
    :ivar classes: of the classification task.
    """

    samples: int
    steps: int
    gallery: int
    shard: int
    seed: int = 0
    classes: int = 200

    @cached_property
    def years(self) -> dict[str, int]:
        """Step of each year."""
        from avalanche_clip.benchmarks.classic import TIC_DATACOMP_STEPS

        labels = list(TIC_DATACOMP_STEPS)[: self.steps]
        return {y: s for s, k in enumerate(labels) for y in TIC_DATACOMP_STEPS[k]}

    def size(self, year: str) -> int:
        """Training pairs of a year: steps are of one size, so are years in a step."""
        years = [*self.years]
        step = self.years[year]
        low, high = (self.samples * k // self.steps for k in (step, step + 1))
        own = [y for y in years if self.years[y] == step]
        place = own.index(year)
        size = high - low
        return size * (place + 1) // len(own) - size * place // len(own)


def _hash(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


@cache
def things() -> tuple[list[str], list[list[Any]]]:
    """Names of all things, and the drawings of each, ``(48, 48, 3)`` arrays."""
    from avalanche_clip.benchmarks.datasets.emoji import (
        EMOJI_STYLES,
        EmojiImages,
        load_emoji_table,
    )
    from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons

    emoji, icons = load_emoji_table(), HeldOutIcons()
    styles = [EmojiImages(style) for style in EMOJI_STYLES]
    drawings: list[list[Any]] = [[s[k] for s in styles] for k in range(len(emoji))]
    drawings += [[icons[k][0]] for k in range(len(icons))]
    return [*emoji.names, *icons.names], drawings


@cache
def first_steps(world: World) -> np.ndarray:
    """The step in which each thing comes up: two in five are there from the start."""
    draws = [int.from_bytes(_hash(world.seed, "first", n), "big") for n in things()[0]]
    share = np.array([d % 10**6 / 10**6 for d in draws])
    later = (share - 0.4) / 0.6 * (world.steps - 1)
    found: np.ndarray = np.where(share < 0.4, 0, 1 + np.floor(later)).astype(int)
    return np.minimum(found, world.steps - 1)


@cache
def classes(world: World) -> np.ndarray:
    """Things of the classification task, the same in all years."""
    draws = [_hash(world.seed, "class", k) for k in range(len(things()[0]))]
    return np.argsort(draws)[: world.classes]


@cache
def pools(world: World, kind: str, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Things that are new in a step, and those of before."""
    first = first_steps(world)
    known = classes(world) if kind == "datacompnet" else np.arange(len(first))
    return known[first[known] == step], known[first[known] < step]


def pair(world: World, kind: str, year: str, number: int) -> dict[str, Any]:
    """Make a pair; the same arguments give the same pair.

    :return: ``uid``, ``caption``, ``month``, ``class`` (None but in classification)
        and ``image``, the bytes of a JPEG file.
    """
    key = _hash(world.seed, kind, year, number)
    rng = np.random.default_rng(int.from_bytes(key, "big"))
    names, drawings = things()
    step = world.years[year]
    new, old = pools(world, kind, step)
    pool = new if not len(old) or (len(new) and rng.random() < NEW) else old
    thing = int(pool[rng.integers(len(pool))])
    drift = step / max(1, world.steps - 1)  # later steps turn and colour more
    plain = rng.random(2) < 0.5 - 0.4 * drift
    colour = "white" if plain[0] else _one(rng, [*COLOURS])
    pose = "upright" if plain[1] else _one(rng, [*POSES])
    caption = _one(rng, CAPTIONS).format(name=names[thing], colour=colour, pose=pose)
    drawing = drawings[thing][int(rng.integers(len(drawings[thing])))]
    image = _styled(drawing, COLOURS[colour], POSES[pose], rng)
    months, classified = _months(year), kind == "datacompnet"
    return {
        "uid": key.hex(),
        "caption": caption,
        "month": _one(rng, months),
        "class": classes(world).tolist().index(thing) if classified else None,
        "image": image,
    }


def _one(rng: Any, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


@cache
def _months(year: str) -> list[str]:
    from avalanche_clip.benchmarks.datasets import TIC_DATACOMP_MONTHS

    return [month for month in TIC_DATACOMP_MONTHS if month.startswith(year)]


def _styled(
    drawing: Image.Image, colour: Sequence[int], degrees: int, rng: Any
) -> bytes:
    side = int(SIZE * rng.uniform(0.6, 0.95))
    turned = drawing.resize((side, side), Image.Resampling.BILINEAR).rotate(
        degrees + float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR, False, None
    )
    # What is turned in from outside is black in the picture, and white in this mask.
    mask = Image.new("L", drawing.size, 255).resize((side, side))
    mask = mask.rotate(degrees, Image.Resampling.NEAREST)
    board = Image.new("RGB", (SIZE, SIZE), "white")
    place = tuple(int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
    board.paste(turned, place, mask)
    values = np.asarray(board, dtype=np.int32) * np.array(colour) // 255
    values += rng.integers(-8, 9, values.shape)
    content = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(
        content, "JPEG", quality=85
    )
    return content.getvalue()


# --------------------------------------------------------------------------- files
def _members(found: dict[str, Any]) -> dict[str, bytes]:
    facts = {
        "uid": found["uid"],
        "caption": found["caption"],
        "url": f"https://simulated.invalid/{found['uid']}.jpg",
        "key": found["uid"][:9],
        "status": "success",
        "error_message": None,
        "width": SIZE,
        "height": SIZE,
        "original_width": SIZE,
        "original_height": SIZE,
        "exif": "{}",
        "sha256": hashlib.sha256(found["image"]).hexdigest(),
    }
    members = {"jpg": found["image"], "txt": found["caption"].encode()}
    members["json"] = json.dumps(facts).encode()
    if found["class"] is not None:
        members["cls"] = str(found["class"]).encode()
    return members


def write_shard(world: World, task: tuple[str, str, list[Any]]) -> list[Any]:
    """Write one archive and its statistics.

    :param task: path, name of the statistics, ``(kind, year, number)`` of each pair.
    :return: id and month of each pair.
    """
    path, stats, wanted = Path(task[0]), task[1], task[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    told = []
    with tarfile.open(path, "w") as tar:
        for kind, year, number in wanted:
            found = pair(world, kind, year, number)
            for ending, content in _members(found).items():
                if ending == "cls" and path.parts[-4] == "train":
                    continue
                member = tarfile.TarInfo(f"{found['uid']}-0.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            told.append((found["uid"], found["month"], found["class"]))
    path.with_name(stats).write_text(json.dumps({"successes": len(wanted)}))
    return told


def _tasks(world: World, folder: Path) -> dict[tuple[str, str], list[Any]]:
    """Archives of each kind and year, not yet written."""
    tasks: dict[tuple[str, str], list[Any]] = {}
    for year in world.years:
        wanted = [("train", year, n) for n in range(world.size(year))]
        held = [(k, year, n) for k in KINDS[1:] for n in range(world.gallery)]
        order = np.random.default_rng([world.seed, int(year)])
        mixed = [*wanted, *held]
        mixed = [mixed[k] for k in order.permutation(len(mixed))]
        own = []
        for shard, low in enumerate(range(0, len(mixed), world.shard)):
            deep = f"{shard % 2}" if year == "2017" and len(mixed) > world.shard else ""
            place = folder / "train" / year / deep
            number = shard // 2 if deep else shard
            name = f"{number:08d}"
            part = mixed[low : low + world.shard]
            own.append((str(place / f"{name}.tar"), f"{name}_stats.json", part))
        tasks["train", year] = own
        for kind in KINDS[1:]:
            place = folder / "eval" / kind / year
            part = [(kind, year, n) for n in range(world.gallery)]
            tasks[kind, year] = [(str(place / "0.tar"), "0.json", part)]
    return tasks


def write_simulation(folder: Path, world: World, *, processes: int = 1) -> None:
    """Write all of it; a folder that holds something else is refused.

    :raises ValueError: for a folder that is not empty, or too few samples.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder.")
    if min(map(world.size, world.years)) < 1:
        raise ValueError(
            f"{world.samples} samples do not reach for a pair in each of the "
            f"{len(world.years)} years; give more."
        )
    tasks = _tasks(world, folder)
    flat = [task for own in tasks.values() for task in own]
    if processes == 1:
        told = iter(map(partial(write_shard, world), flat))
        _finish(folder, world, tasks, list(told))
        return
    with ProcessPoolExecutor(processes) as pool:
        _finish(folder, world, tasks, list(pool.map(partial(write_shard, world), flat)))


def _finish(folder: Path, world: World, tasks: Any, told: list[Any]) -> None:
    """Write what lies beside the archives, and the lists of ids."""
    from avalanche_clip.benchmarks import write_uid_list

    rest = iter(told)
    found = {
        key: [row for _ in own for row in next(rest)] for key, own in tasks.items()
    }
    yearly = folder / "tic-datacomp_training_yearly_noeval"
    monthly = folder / "tic-datacomp_training_monthly"
    for made in (yearly, monthly):
        made.mkdir()
    sizes: dict[Path, dict[str, int]] = {yearly: {}, monthly: {}}
    evaluation: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS[1:]}
    prompts = classes(world)
    for (kind, year), rows in found.items():
        uids = [uid for uid, _, _ in rows]
        place = folder / "train" / year
        if kind == "train":
            shards = {Path(p): len(part) for p, _, part in tasks[kind, year]}
            for parent in {path.parent for path in shards}:
                own = {p.name: n for p, n in shards.items() if p.parent == parent}
                (parent / "sizes.json").write_text(json.dumps(own))
            facts = {
                "processed_count": len(rows),
                "output_count": len(rows),
                "output_shard_count": len(shards),
                "output_shard_format": "{:08d}.tar",
            }
            (place / "meta.json").write_text(json.dumps(facts))
            write_uid_list(place / "sample_ids.npy", uids)
            write_uid_list(yearly / f"{year}.npy", uids)
            sizes[yearly][year] = len(uids)
            for month in sorted({m for _, m, _ in rows}):
                listed = [uid for uid, m, _ in rows if m == month]
                write_uid_list(monthly / f"{month}.npy", listed)
                sizes[monthly][month] = len(listed)
            continue
        place = folder / "eval" / kind / year
        retrieval = kind == "retrieval"
        (place / "nshards.txt").write_text("1")
        (place / "count.txt").write_text(f"{len(rows)}")
        said = "retrieval" if retrieval else "classification"
        (place / "dataset_type.txt").write_text(said)
        if retrieval:
            evaluation[kind][year] = uids
            continue
        names = "\n".join(things()[0][k] for k in prompts)
        (place / "classnames.txt").write_text(names, encoding="utf-8")
        lines = "\n".join(TEMPLATES)
        (place / "zeroshot_classification_templates.txt").write_text(lines)
        labels = sorted({label for _, _, label in rows})
        evaluation[kind][year] = {
            f"n{k:08d}": [u for u, _, label in rows if label == k] for k in labels
        }
    for made, own in sizes.items():
        (made / "sizes.json").write_text(json.dumps(own))
    for kind, name in zip(evaluation, ("_retrieval_evals", "net"), strict=True):
        path = folder / f"tic-datacomp{name}_year2uids.json"
        path.write_text(json.dumps(evaluation[kind]))
    (folder / "world.json").write_text(json.dumps(asdict(world)))


def main(argv: Sequence[str] | None = None) -> None:
    """Write a simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--samples", type=positive, default=2000)
    parser.add_argument("--steps", type=positive, default=4, choices=range(1, 8))
    parser.add_argument(
        "--gallery", type=positive, help="pairs per evaluation set; default by samples"
    )
    parser.add_argument(
        "--shard", type=positive, default=1000, help="pairs per archive"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=positive, default=os.cpu_count())
    given = parser.parse_args(argv)
    gallery = given.gallery or min(1000, max(8, given.samples // 200))
    world = World(given.samples, given.steps, gallery, given.shard, given.seed)
    with refusals(parser):
        write_simulation(given.folder, world, processes=given.processes)
    size = sum(p.stat().st_size for p in given.folder.rglob("*.tar")) / 1e6
    print(f"{given.folder}: {given.samples} pairs, {size:.0f} MB")


if __name__ == "__main__":
    main()
