"""Files of MMVP and MMVP-VLM as released, with patches of colour as images."""

import csv

from PIL import Image

from avalanche_clip.benchmarks.datasets import MMVP_PATTERNS

HALF = 16


def patch(number):
    """A patch whose colour says a number."""
    return Image.new("RGB", (HALF, HALF), (number % 256, number // 256 * 64, 200))


def write_table(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_vlm(root, *, folder="MLLM_VLM Images", order=None, types=None, kind="jpeg"):
    """135 pairs; the statement of image n has the number that its colour says.

    :param kind: of the images, whatever the files are called.
    """
    kinds = types or list(MMVP_PATTERNS)
    rows = []
    for number in range(1, 271):
        name = kinds[(number - 1) // 30]
        place = root / folder / list(MMVP_PATTERNS)[(number - 1) // 30]
        place.mkdir(parents=True, exist_ok=True)
        patch(number).save(place / f"{number}.jpg", kind, quality=95)
        rows.append([number, name, f"it is number {number}"])
    rows = rows if order is None else [rows[k] for k in order]
    columns = ["Question ID", "Type", "Statement"]
    write_table(root / "Questions.csv", columns, rows)
    return root


def write_mmvp(root, count=300):
    """Questions whose answer is (a) in odd rows, with the four swapped labels."""
    (root / "MMVP Images").mkdir(parents=True)
    rows = []
    for number in range(1, count + 1):
        patch(number).save(root / "MMVP Images" / f"{number}.jpg")
        letter = "ab"[(number - 1) % 2]
        right = {99: "a", 100: "b", 279: "a", 280: "b"}.get(number, letter)
        options = "(a) Open (b) Closed, or shut"
        rows.append([number, "Is the wing open?", options, f"({right})"])
    columns = ["Index", "Question", "Options", "Correct Answer"]
    write_table(root / "Questions.csv", columns, rows)
    return root
