import math

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks.datasets import EmojiImages
from avalanche_clip.models import drawing_features


def by_hand(image):
    """The same in loops over pixels."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    grey = np.pad(pixels.mean(2), 1, mode="edge")
    edges, colours = np.zeros((8, 6, 6)), np.zeros((3, 6, 6))
    for y in range(48):
        for x in range(48):
            down = grey[y + 2, x + 1] - grey[y, x + 1]
            along = grey[y + 1, x + 2] - grey[y + 1, x]
            turn = round(math.atan2(down, along) / (2 * math.pi) * 8) % 8
            edges[turn, y // 8, x // 8] += math.hypot(down, along) / 64
            colours[:, y // 8, x // 8] += pixels[y, x] / 64
    edges = np.sqrt(edges)
    parts = edges - edges.mean(0), colours - colours.mean((1, 2))[:, None, None]
    return np.concatenate([(p / np.linalg.norm(p)).ravel() for p in parts]) / 2**0.5


def test_drawing_features__equal_loops_over_pixels():
    images = list(EmojiImages("twemoji", [3, 500, 1600]))
    found = drawing_features(images)
    assert found.shape == (3, 396) and found.dtype == torch.float32
    for row, image in zip(found, images, strict=True):
        # A direction on the border between two may fall to either.
        assert float(row @ torch.tensor(by_hand(image)).float()) > 0.999


def test_drawing_features__of_each_drawing_alone():
    images = list(EmojiImages("noto", range(9)))
    together = drawing_features(iter(images))
    alone = torch.cat([drawing_features([image]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(9))


def test_drawing_features__sizes_modes_and_empty_sheets():
    sheet = Image.new("RGB", (48, 48), "white")
    assert not drawing_features([sheet]).any()
    clear = Image.new("RGBA", (100, 20), (0, 0, 0, 0))
    assert drawing_features([clear, sheet]).tolist() == [[0.0] * 396] * 2
    with pytest.raises(ValueError, match="no pictures"):
        drawing_features([])
