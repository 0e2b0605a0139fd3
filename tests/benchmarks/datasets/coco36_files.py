"""A tiny MSCOCO36 and XM3600 in the released formats, for tests."""

from __future__ import annotations

import gzip
import json

import numpy as np
from PIL import Image

PICTURES = ("a.jpg", "b.jpg")
ENGLISH = ("a red dog", "the dog runs", "two cats")
GERMAN = ("ein roter Hund", "der Hund läuft", "zwei Katzen")
ROWS = (0, 0, 1)


def write_gz(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode("utf-8")
    with gzip.open(path, "wb") as file:
        file.write(content)


def lines(*columns):
    """Rows of tab-separated cells, each ended by a line feed."""
    return "".join("\t".join(cells) + "\n" for cells in zip(*columns, strict=True))


def write_pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(PICTURES):
        # grey: the reader has to make it RGB
        Image.new("L", (6, 4), 40 + 100 * number).save(folder / name)


def write_coco(root, *, triplets=("en", "de")):
    """Write two pictures with three captions in English and German."""
    corpus = root / "data/corpus/multilingual_coco/36langs"
    names = [PICTURES[row] for row in ROWS]
    texts = {"en": ENGLISH, "de": GERMAN}
    write_gz(corpus / "coco_en.tsv.gz", lines(ENGLISH))
    for code, captions in texts.items():
        write_gz(corpus / f"coco_en-{code}.tsv.gz", lines(ENGLISH, captions))
        write_gz(
            corpus / f"vision_text/coco_vision-{code}.tsv.gz", lines(names, captions)
        )
        plain = corpus / "plain_text" / f"{code}.txt"
        plain.parent.mkdir(exist_ok=True)
        plain.write_bytes(lines(captions).encode())
        if code in triplets:
            write_gz(
                corpus / f"triplet/coco_vision-en-{code}.tsv.gz",
                lines(names, ENGLISH, captions),
            )
    embeddings = corpus / "embeddings"
    embeddings.mkdir()
    generator = np.random.default_rng(0)
    for kind, count in (("sentence", 3), ("vision", 2)):
        array = generator.normal(size=(count, 5)).astype(np.float32)
        np.save(embeddings / f"openai_tiny_{kind}_embeddings.npy", array)
    write_annotations(root / "data/annotations/coco", texts)
    return root


def write_annotations(folder, texts):
    (folder / "en").mkdir(parents=True)
    single = [
        {"image": PICTURES[row], "caption": caption, "image_id": 50 + row}
        for row, caption in zip(ROWS, ENGLISH, strict=True)
    ]
    (folder / "en/train.json").write_text(json.dumps(single))
    for code, captions in texts.items():
        content = [
            {"image": "a.jpg", "caption": list(captions[:2]), "image_id": 50},
            {"image": "b.jpg", "caption": list(captions[2:]), "image_id": 51},
        ]
        target = folder / "translated" / code
        target.mkdir(parents=True)
        for split in ("val", "test"):
            (target / f"{split}.json").write_text(json.dumps(content))
        truth = {
            "annotations": [
                {"image_id": 50 + row, "caption": caption, "id": number}
                for number, (row, caption) in enumerate(
                    zip(ROWS, captions, strict=True)
                )
            ],
            "images": [{"id": 50}, {"id": 51}],
        }
        (target / "test_gt.json").write_text(json.dumps(truth))


def write_xm3600(path, texts):
    """Write ``captions.jsonl``: ``texts[code]`` is a list of lists per picture."""
    content = []
    for number, key in enumerate(("000411001ff7dd4f", "9ee6a35ba3d4a4c8")):
        entry = {"image/key": key, "image/locale": "en"}
        for code, lists in texts.items():
            captions = lists[number]
            entry[code] = {
                "caption": captions,
                "caption/tokenized": captions,
                "caption/tokenized/lowercase": [c.lower() for c in captions],
            }
        content.append(json.dumps(entry))
    path.write_text("\n".join(content) + "\n", encoding="utf-8")
