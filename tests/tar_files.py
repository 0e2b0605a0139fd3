"""Tar archives with samples, sound and damaged, written by Python's ``tarfile``."""

import io
import json
import tarfile

from tests.web_folders import picture


def write_tar(path, entries, *, format=tarfile.GNU_FORMAT):
    """Write ``(name, bytes)`` entries, in order; names may be TarInfo objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format, encoding="utf-8") as tar:
        for name, content in entries:
            member = (
                name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            )
            if not member.size:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number, key=None, ending="png"):
    """Entries of a sample as img2dataset writes them."""
    key = f"{number:08d}" if key is None else key
    facts = {"uid": f"{number:032x}", "caption": f"caption {number}"}
    return [
        (f"{key}.{ending}", picture(number, ending)),
        (f"{key}.txt", f"caption {number}".encode()),
        (f"{key}.json", json.dumps(facts).encode()),
    ]


def samples(numbers):
    return [entry for number in numbers for entry in sample(number)]


def write_shards(folder, count=4, each=5):
    """Write ``count`` archives of ``each`` samples, numbered through."""
    return [
        write_tar(folder / f"{n:08d}.tar", samples(range(n * each, (n + 1) * each)))
        for n in range(count)
    ]
