"""Reader of MSCOCO36: COCO captions translated into 36 languages.

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the files released
with it. Karpathy's splits: 113,287 pictures with 566,747 captions to train on,
5,000 with 25,010 each to validate and to test; translated from English by machine.
The files are not part of this package. Row i of every training file belongs to
English caption i; row j of the image features to the j-th distinct picture of the
triplet file. What the authors' scripts derive from their download (triplets, pairs,
plain texts) is not needed: the annotations name the pictures row by row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.captioned import (
    LANGUAGES_36,
    CaptionedImages,
    check_language,
    load_image,
    read_annotations,
)
from avalanche_clip.benchmarks.datasets.plain_texts import check_names
from avalanche_clip.benchmarks.datasets.text_columns import (
    TextColumn,
    number_texts,
    read_table,
)
from avalanche_clip.common.checks import existing_file, require_choice, require_length

COCO36_LANGUAGES = LANGUAGES_36
CORPUS = Path("corpus/multilingual_coco/36langs")
ANNOTATIONS = Path("annotations/coco")


class FeatureFiles(NamedTuple):
    """Released features: English sentences by line, pictures by first appearance."""

    texts: Path
    images: Path


class Coco36:
    """The released files of MSCOCO36.

    Files are read when they are asked for. The English captions and the names of
    the pictures, which all languages share, are kept once; captions of a language
    live in its data set.

    :param root: folder that holds ``data/corpus`` and ``data/annotations``, or that
        ``data`` itself.
    :param image_root: folder of COCO's pictures, with ``train2014`` and ``val2014``;
        None if they are never read.
    :raises FileNotFoundError: if the folder has neither corpus nor annotations.
    """

    def __init__(self, root: str | Path, image_root: str | Path | None = None) -> None:
        root = Path(root).expanduser()
        self.data = root / "data" if (root / "data").is_dir() else root
        if not any((self.data / part).is_dir() for part in (CORPUS, ANNOTATIONS)):
            raise FileNotFoundError(
                f"{self.data} has neither {CORPUS} nor {ANNOTATIONS}; give the folder "
                "that holds the released 'data'."
            )
        self.image_root = image_root
        self._shared: tuple[TextColumn, npt.NDArray[np.int64], TextColumn] | None = None
        self._origin = ""
        self._pictures: TextColumn | None = None
        self._text_ids = np.empty(0, dtype=np.int64)

    # -------------------------------------------------------------- train
    def english(self) -> TextColumn:
        """Return the English captions, ``coco_en.tsv.gz``.

        Where that file is missing, those of any ``coco_en-{l}.tsv.gz``.
        """
        path = self.data / CORPUS / "coco_en.tsv.gz"
        others = sorted((self.data / CORPUS).glob("coco_en-*.tsv.gz"))
        if not path.is_file() and others:
            return read_table(others[0], 2)[0]
        return read_table(path, 1)[0]

    def translations(self, language: str) -> tuple[TextColumn, TextColumn]:
        """Return English captions and translations, ``coco_en-{l}.tsv.gz``."""
        check_language(language)
        path = self.data / CORPUS / f"coco_en-{language}.tsv.gz"
        english, translated = read_table(path, 2)
        return english, translated

    def plain_text(self, language: str) -> TextColumn:
        """Return what a vocabulary is learnt on, ``plain_text/{l}.txt``.

        Where that file is missing, the captions of :meth:`captions`.
        """
        check_language(language)
        path = self.data / CORPUS / "plain_text" / f"{language}.txt"
        return read_table(path, 1)[0] if path.is_file() else self.captions(language)

    def captions(self, language: str) -> TextColumn:
        """Return the training captions of a language, checked row by row.

        They come from ``triplet/coco_vision-en-{l}.tsv.gz``; where that is
        missing, from ``vision_text/coco_vision-{l}.tsv.gz`` with the English ones
        of ``coco_en.tsv.gz``; where that is missing, too, from
        ``coco_en-{l}.tsv.gz`` with the pictures of ``annotations/coco/en/train.json``.

        :param language: one of the 36 codes.
        :raises FileNotFoundError: if there is none of these files.
        :raises ValueError: naming file and row, where pictures or English captions
            differ from those of the files read before.
        """
        check_language(language)
        folder = self.data / CORPUS
        path = folder / "triplet" / f"coco_vision-en-{language}.tsv.gz"
        pair_path = folder / "vision_text" / f"coco_vision-{language}.tsv.gz"
        text_path = folder / f"coco_en-{language}.tsv.gz"
        if path.is_file():
            names, english, captions = read_table(path, 3)
        elif pair_path.is_file():
            path = pair_path
            names, captions = read_table(path, 2)
            known = self._shared
            english = self.english() if known is None else known[2]
        elif text_path.is_file() or language == "en":
            path = text_path
            if language == "en":
                english = captions = self.english()
            else:
                english, captions = read_table(path, 2)
            names = self._annotated(path, english)
        else:
            raise FileNotFoundError(
                f"{self.data / CORPUS} has no captions in {language!r}: neither "
                f"{path.relative_to(folder)} nor {pair_path.relative_to(folder)} nor "
                f"{text_path.name} is there."
            )
        require_length(names, len(english), f"rows of {path}", "English caption")
        self._check_aligned(path, names, english)
        return captions

    def _annotated(self, path: Path, english: TextColumn) -> TextColumn:
        """Pictures of the rows of a corpus, from the annotations in their order."""
        source = self.data / ANNOTATIONS / "en" / "train.json"
        if self._pictures is None:
            listed = self.annotations("en", "train")
            for row, (a, b) in enumerate(zip(listed.captions, english)):
                if a != b and _letters(a) != _letters(b):
                    raise ValueError(
                        f"{path} and {source} differ in the English caption of row "
                        f"{row} (counted from 0): {b[:60]!r} and {a[:60]!r}. Rows "
                        "belong together by their number."
                    )
            self._pictures = listed.names
        count = len(self._pictures)
        require_length(english, count, f"rows of {path}", f"entry of {source}")
        return self._pictures

    def _check_aligned(
        self, path: Path, names: TextColumn, english: TextColumn
    ) -> None:
        """Keep what all languages share, or compare with what is kept."""
        distinct, rows = number_texts(names)
        if self._shared is None:
            check_names(distinct, path, self.image_root)
            self._shared, self._origin = (distinct, rows, english), str(path)
            return
        known_names, known_rows, known_english = self._shared
        row = known_english.first_difference(english)
        if row is not None:
            raise ValueError(
                f"{path} and {self._origin} differ in the English caption of row {row} "
                f"(counted from 0; {len(english)} and {len(known_english)} rows). Rows "
                "of all languages must be translations of the same captions."
            )
        if not np.array_equal(rows, known_rows) or not distinct.same_as(known_names):
            shown = (known_names[row] for row in known_rows)
            wrong = next(i for i, name in enumerate(shown) if names[i] != name)
            raise ValueError(
                f"{path} and {self._origin} differ in the picture of row {wrong} "
                "(counted from 0); rows of all languages must show the same pictures."
            )

    def shared(
        self, language: str = "en"
    ) -> tuple[TextColumn, npt.NDArray[np.int64], TextColumn]:
        """Return distinct pictures, picture of each row, and English captions.

        :param language: whose file is read if none has been.
        """
        if self._shared is None:
            self.captions(language)
        assert self._shared is not None
        return self._shared

    def text_ids(self, count: int) -> npt.NDArray[np.int64]:
        """Return 0..count-1, one array for the data sets of all languages."""
        if len(self._text_ids) != count:
            self._text_ids = np.arange(count, dtype=np.int64)
        return self._text_ids

    def check(self, languages: Any = COCO36_LANGUAGES) -> int:
        """Read the training files of languages and compare them row by row.

        :param languages: codes.
        :return: the number of rows that all share.
        :raises ValueError: see :meth:`captions`.
        """
        for language in languages:
            self.captions(language)
        return len(self.shared()[2])

    def train(self, language: str) -> CocoTriplets:
        """Return the training pairs of a language; captions load with the first.

        :param language: one of the 36 codes.
        """
        check_language(language)
        return CocoTriplets(self, language)

    # ------------------------------------------------------- validation, test
    def annotations(self, language: str, split: str) -> CaptionedImages:
        """Return pictures with their captions.

        :param language: one of the 36 codes.
        :param split: ``"val"`` or ``"test"`` (about five captions per item), or
            ``"train"``, in English only, with one item per caption.
        :raises ValueError: for another language or split.
        """
        check_language(language)
        require_choice("split", split, ("train", "val", "test"))
        folder = self.data / ANNOTATIONS
        path = folder / "translated" / language / f"{split}.json"
        if language == "en" and not path.is_file():
            path = folder / "en" / f"{split}.json"
        elif split == "train":
            raise ValueError(
                "split='train' has annotations in English only; use "
                f"train({language!r})."
            )
        return read_annotations(path, self.image_root)

    def feature_files(self, model: str) -> FeatureFiles:
        """Return the paths of the released features of a model.

        :param model: name on the Hugging Face hub, such as
            ``"openai/clip-vit-base-patch16"``.
        :raises FileNotFoundError: if a file is missing.
        """
        stem = model.replace("/", "_")
        folder = self.data / CORPUS / "embeddings"
        files = FeatureFiles(
            folder / f"{stem}_sentence_embeddings.npy",
            folder / f"{stem}_vision_embeddings.npy",
        )
        for path in files:
            existing_file(path, "check the model's name")
        return files


def _letters(caption: str) -> str:
    """What is left of a caption when blanks and marks may have been tidied up."""
    return "".join(c for c in caption.casefold() if c.isalnum())


class CocoTriplets:
    """Map-style data set of training pictures with a caption in one language.

    Its columns come from :class:`Coco36`; the captions of the language are read
    with the first item (some seconds, about 35 MB) and left out of pickles, so that
    36 languages cost nothing until they are trained on.

    :param source: the released files.
    :param language: one of the 36 codes.

    :ivar image_id: int64 ``(N,)``: number of the picture by first appearance, the
        row of the released image features.
    :ivar text_id: int64 ``(N,)``: row of the English caption, and of its features.
    """

    def __init__(self, source: Coco36, language: str) -> None:
        self.source = source
        self.language = language
        names, rows, english = source.shared(language)
        self._names, self._english = names, english
        self.image_id = rows
        self.text_id = source.text_ids(len(rows))
        self._captions: TextColumn | None = None

    @property
    def captions(self) -> TextColumn:
        """The captions; reads them if they are not in memory."""
        if self._captions is None:
            self._captions = self.source.captions(self.language)
        return self._captions

    def release(self) -> None:
        """Drop the captions from memory; they are read again when needed."""
        self._captions = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_captions": None}

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, item: int) -> tuple[Image.Image, str]:
        image = load_image(self.source.image_root, self.image_name(item))
        return image, self.text(item)

    def text(self, item: int) -> str:
        """Return the caption of an item without its picture."""
        return self.captions[item]

    def english(self, item: int) -> str:
        """Return the English caption, the one that a teacher sees."""
        return self._english[item]

    def image_name(self, item: int) -> str:
        """Return the path of an item's picture below ``image_root``."""
        return self._names[int(self.image_id[item])]
