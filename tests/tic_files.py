"""TiC-DataComp on disk, a few pairs small, written by Python's ``tarfile``."""

import json

from tests.tar_files import write_tar
from tests.web_folders import picture


def uid(year, number):
    """Distinct ids that are not in the order of their numbers."""
    return f"{(year * 1000 + number) * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}"


def entries(name, number, caption=None, ending="jpg", **members):
    """Members of one sample; None leaves one out."""
    caption = f"caption {number}" if caption is None else caption
    facts = {"uid": name.partition("-")[0], "caption": caption, "url": "x"}
    known = {
        ending: picture(number % 50, ending),
        "txt": caption.encode(),
        "json": json.dumps(facts).encode(),
        **members,
    }
    return [(f"{name}.{e}", c) for e, c in known.items() if c is not None]


def write_tree(
    folder, numbers, year, *, shards=2, stats="stats", repeats=(), **members
):
    """Shards of some samples of a year; those of ``repeats`` twice."""
    numbers = list(numbers)
    sizes = {}
    for shard in range(shards):
        own = [
            (f"{uid(year, n)}-{j}", n)
            for n in numbers[shard::shards]
            for j in range(2 if n in repeats else 1)
        ]
        content = [e for name, n in own for e in entries(name, n, **members)]
        path = write_tar(folder / f"{shard:08d}.tar", content)
        sizes[path.name] = len(own)
        if stats == "stats":
            where = folder / f"{path.stem}_stats.json"
            where.write_text(json.dumps({"successes": len(own)}))
    if stats == "sizes":
        (folder / "sizes.json").write_text(json.dumps(sizes))
    facts = {"processed_count": 9, "output_shard_format": "{:08d}.tar", "seed": "0"}
    (folder / "meta.json").write_text(json.dumps(facts))
    return [uid(year, n) for n in numbers]


def write_evaluation(folder, numbers, year, kind, classes=3):
    """An evaluation set as it is after conversion."""
    numbers = list(numbers)
    content = []
    for n in numbers:
        more = {"cls": str(n % classes).encode()} if kind == "datacompnet" else {}
        content += entries(
            f"{uid(year, n)}-0", n, "two\nlines" if n % 2 else None, **more
        )
    write_tar(folder / "0.tar", content)
    (folder / "0.json").write_text(json.dumps({"successes": len(numbers)}))
    (folder / "nshards.txt").write_text("1\n")
    (folder / "count.txt").write_text(f"{len(numbers)}\n")
    (folder / "dataset_type.txt").write_text(
        "retrieval\n" if kind == "retrieval" else "classification\n"
    )
    if kind == "datacompnet":
        names = "".join(f"class {c}\n" for c in range(classes))
        (folder / "classnames.txt").write_text(names)
        (folder / "zeroshot_classification_templates.txt").write_text(
            "a {c}.\nthe {c}."
        )
    return [uid(year, n) for n in numbers]


YEARS = {"2016": (2014, 2015, 2016), "2017": (2017,)}


def write_datacomp(root, years=(2014, 2015, 2016, 2017), count=8):
    """Training shards that still hold evaluation pairs, and evaluation sets."""
    for year in years:
        write_tree(root / "train" / f"{year}", range(count), year)
        place = root / "eval"
        write_evaluation(
            place / "retrieval" / f"{year}", range(2, 5), year, "retrieval"
        )
        write_evaluation(
            place / "datacompnet" / f"{year}", range(3), year, "datacompnet"
        )
    return root / "train", root / "eval"
