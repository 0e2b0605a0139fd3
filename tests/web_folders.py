"""Evaluation sets in tar shards, written by other means than they are read."""

import functools
import io
import tarfile

import numpy as np
import torch
from PIL import Image


@functools.cache
def picture(seed, ending="png", size=8):
    """Bytes of a small random picture; PNG and lossless WebP keep its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(
        content, "JPEG" if ending[0] == "j" else ending.upper()
    )
    return content.getvalue()


def to_pixels(image):
    return torch.tensor(list(image.tobytes()), dtype=torch.float32).view(3, 8, 8) / 255


def npy(values):
    content = io.BytesIO()
    np.save(content, np.asarray(values))
    return content.getvalue()


def write_web_folder(
    folder, samples, *, kind=None, classes=(), templates=(), shards=2, split="test"
):
    """Write samples, dicts from ending to bytes or text, shard after shard."""
    (folder / split).mkdir(parents=True)
    if kind is not None:
        (folder / "dataset_type.txt").write_text(kind + "\n")
    for name, lines in (
        ("classnames.txt", classes),
        ("zeroshot_classification_templates.txt", templates),
    ):
        if lines:
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    per_shard = -(-len(samples) // shards)
    for shard in range(shards):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
            for number in range(shard * per_shard, (shard + 1) * per_shard):
                if number >= len(samples):
                    break
                for ending, content in samples[number].items():
                    raw = content if isinstance(content, bytes) else content.encode()
                    member = tarfile.TarInfo(f"s{number:07d}.{ending}")
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
    return folder
