"""Readers of MSCOCO36 and XM3600 on small files of the released formats."""

import json
import pickle
import shutil

import numpy as np
import pytest

from avalanche_clip.benchmarks.datasets.captioned import (
    CaptionedImages,
    missing_images,
    read_annotations,
    read_ground_truth,
)
from avalanche_clip.benchmarks.datasets.coco36 import COCO36_LANGUAGES, Coco36
from avalanche_clip.benchmarks.datasets.text_columns import (
    TextColumn,
    number_texts,
    read_table,
)
from avalanche_clip.benchmarks.datasets.xm3600 import XM3600, XM3600_CAPTIONS
from tests.benchmarks.datasets.coco36_files import (
    ENGLISH,
    GERMAN,
    PICTURES,
    ROWS,
    lines,
    write_coco,
    write_gz,
    write_pictures,
    write_xm3600,
)
from tests.refused import refused

TRIPLETS = "data/corpus/multilingual_coco/36langs/triplet/coco_vision-en-{}.tsv.gz"


@pytest.fixture
def coco(tmp_path):
    write_pictures(tmp_path / "pictures")
    return Coco36(write_coco(tmp_path), tmp_path / "pictures")


# ------------------------------------------------------------------ columns
def test_column__behaves_like_a_list_of_strings():
    texts = ["", "zwölf", "漢字", "a\tb", ""]
    column = TextColumn.from_texts(texts)
    assert list(column) == texts and len(column) == 5
    assert column[-1] == "" and column[1:3] == texts[1:3]
    assert column[np.int64(2)] == "漢字"
    assert list(pickle.loads(pickle.dumps(column))) == texts
    for index in (5, -6):
        with pytest.raises(IndexError):
            column[index]
    assert list(TextColumn.from_texts([])) == []


def test_numbers__follow_the_first_appearance():
    distinct, rows = number_texts(TextColumn.from_texts(["y", "x", "y", "z", "x"]))
    assert list(distinct) == ["y", "x", "z"]
    assert rows.tolist() == [0, 1, 0, 2, 1]


def test_table__splits_rows_at_line_feeds_only(tmp_path):
    content = (
        b"\xef\xbb\xbfa.jpg\tone\r two\r\n"  # mark, stray return, Windows line end
        b"b.jpg\tdrei\xe2\x80\xa8vier\x0bf\n"  # line separator, vertical tab
        b"c.jpg\tlast"  # no line end
    )
    write_gz(tmp_path / "x.tsv.gz", content)
    names, texts = read_table(tmp_path / "x.tsv.gz", 2)
    assert list(names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert list(texts) == ["one  two", "drei\u2028vier\x0bf", "last"]
    (tmp_path / "plain.txt").write_bytes(b"one\n\ntwo\n")
    assert list(read_table(tmp_path / "plain.txt", 1)[0]) == ["one", "", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nc\n", "line 2 has 1 tab-separated"),
        (b"a\tb\tc\n", "line 1 has 3 tab-separated"),
        (b"a\tb\n\n", "line 2 has 1"),
        (b"a\t\xff\n", "line 1 is no UTF-8"),
    ],
)
def test_table__names_the_line_that_does_not_fit(tmp_path, content, message):
    write_gz(tmp_path / "x.tsv.gz", content)
    refused(f"x.tsv.gz, {message}", read_table, tmp_path / "x.tsv.gz", 2)
    refused("y.tsv", read_table, tmp_path / "y.tsv", 2, error=FileNotFoundError)


# -------------------------------------------------------------------- train
def check_training(source, codes):
    for code in codes:
        data, captions = source.train(code), {"de": GERMAN, "en": ENGLISH}[code]
        assert data.image_id.tolist() == list(ROWS)
        assert data.text_id.tolist() == [0, 1, 2]
        for row in range(3):
            image, caption = data[row]
            assert caption == captions[row] == data.text(row)
            assert data.english(row) == ENGLISH[row]
            assert data.image_name(row) == PICTURES[ROWS[row]]
            assert image.mode == "RGB" and image.size == (6, 4)
            assert abs(image.getpixel((0, 0))[0] - (40 + 100 * ROWS[row])) < 3
        assert list(source.plain_text(code)) == list(captions)
    assert source.check(codes) == 3


@pytest.mark.parametrize("triplets", [("en", "de"), ("de",), ("en",), ()])
def test_training_pairs__join_picture_caption_and_english(tmp_path, triplets):
    write_pictures(tmp_path / "pictures")
    root = write_coco(tmp_path, triplets=triplets)
    source = Coco36(root, tmp_path / "pictures")
    check_training(source, ["de", "en"])
    assert source.train("en")._english is source.train("de")._english


def test_training_pairs__load_captions_late_and_pickle_without(coco):
    data = coco.train("de")
    assert data._captions is None
    assert data.text(1) == GERMAN[1]
    again = pickle.loads(pickle.dumps(data))
    assert again._captions is None
    assert again[2][1] == GERMAN[2]
    data.release()
    assert data._captions is None and data.text(0) == GERMAN[0]


def test_corpora__are_read_as_columns(coco):
    assert tuple(coco.english()) == ENGLISH
    assert [tuple(c) for c in coco.translations("de")] == [ENGLISH, GERMAN]
    assert tuple(coco.plain_text("de")) == GERMAN
    (coco.data / "corpus/multilingual_coco/36langs/plain_text/de.txt").unlink()
    assert tuple(coco.plain_text("de")) == GERMAN


@pytest.mark.parametrize(
    ("names", "english", "message"),
    [
        (["a.jpg", "b.jpg", "b.jpg"], ENGLISH, "picture of row 1"),
        (["b.jpg", "b.jpg", "a.jpg"], ENGLISH, "picture of row 0"),
        (["a.jpg", "a.jpg", "c.jpg"], ENGLISH, "picture of row 2"),
        (["a.jpg"] * 2 + ["b.jpg"], ENGLISH[::-1], "English caption of row 0"),
        (["a.jpg"] * 2, ENGLISH[:2], "English caption of row 2"),
    ],
)
def test_alignment__is_checked_row_by_row(coco, names, english, message):
    data = coco.train("en")
    path = coco.data.parent / TRIPLETS.format("de")
    write_gz(path, lines(names, english, GERMAN[: len(names)]))
    late = coco.train("de")
    for read in (lambda: coco.check(["en", "de"]), lambda: late.text(0)):
        refused(message, read)
    assert data.text(0) == ENGLISH[0]


def test_alignment__of_pairs_needs_as_many_english_captions(tmp_path):
    root = write_coco(tmp_path, triplets=())
    folder = tmp_path / "data/corpus/multilingual_coco/36langs"
    write_gz(folder / "vision_text/coco_vision-de.tsv.gz", lines(["a.jpg"], ["x"]))
    refused("1 rows of .*one per English caption", Coco36(root).train, "de")


def test_errors__name_what_is_missing(tmp_path, coco):
    refused("neither", Coco36, tmp_path / "pictures", error=FileNotFoundError)
    refused("language='qu' is unknown", coco.train, "qu")
    with pytest.raises(FileNotFoundError, match="coco_vision-en-fr"):
        coco.train("fr").text(0)
    with pytest.raises(ValueError, match="image_root"):
        Coco36(coco.data.parent).train("de")[0]
    assert len(COCO36_LANGUAGES) == 36
    assert missing_images(coco.image_root, ["a.jpg", "x.jpg", "x.jpg"]) == ["x.jpg"]


# -------------------------------------------------------------- annotations
def test_annotations__keep_the_captions_of_each_picture(coco):
    for split in ("val", "test"):
        data = coco.annotations("de", split)
        assert [data.text(i) for i in range(2)] == [list(GERMAN[:2]), [GERMAN[2]]]
        assert data.image_id.tolist() == [50, 51]
        image, captions = data[1]
        assert captions == [GERMAN[2]] and image.size == (6, 4)
    train = coco.annotations("en", "train")
    assert [train.text(i) for i in range(3)] == list(ENGLISH)
    assert train.image_id.tolist() == [50, 50, 51]
    refused("English only", coco.annotations, "de", "train")
    refused("split='dev'", coco.annotations, "de", "dev")
    path = coco.data / "annotations/coco/translated/de/test_gt.json"
    assert read_ground_truth(path) == {50: list(GERMAN[:2]), 51: [GERMAN[2]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list"),
        ({}, "no list"),
        ([{"image": "a", "caption": [], "image_id": 1}], "entry 0: 'caption' is"),
        ([{"image": "a", "caption": ["x", 3], "image_id": 1}], "'caption' is"),
        ([{"image": "a", "caption": ["x"], "image_id": "1"}], "'image_id' is '1'"),
        ([{"caption": ["x"], "image_id": 1}], "'image' is None"),
        (
            [
                {"image": "a", "caption": "x", "image_id": 1},
                {"image": "b", "caption": ["x"], "image_id": 2},
            ],
            "entry 0: 'caption'",
        ),
        (
            [
                {"image": "a", "caption": "x", "image_id": 1},
                {"image": "a", "caption": "y", "image_id": 2},
            ],
            "entry 1: its picture has the id 1",
        ),
    ],
)
def test_annotations__name_the_entry_that_does_not_fit(tmp_path, content, message):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(content))
    refused(message, read_annotations, path)


def test_captioned_images__check_their_columns():
    with pytest.raises(ValueError, match="counts sum to 3 for 2"):
        CaptionedImages(["a", "b"], ["x", "y"], [1, 2], [0, 1])
    refused("smallest is 0", CaptionedImages, ["a", "b"], ["x", "y"], [0, 2], [0, 1])
    refused("single=True", CaptionedImages, ["a"], ["x", "y"], [2], [0], single=True)
    refused("image ids given", CaptionedImages, ["a"], ["x"], [1], [0, 1])
    with pytest.raises(IndexError):
        CaptionedImages(["a"], ["x"], [1], [0]).text(1)


# ------------------------------------------------------------------ XM3600
TEXTS = {"en": [["a dog", "dogs\r run"], ["cat"]], "quz": [["allqu"], []]}


def test_xm3600__reads_the_original_lines(tmp_path):
    write_xm3600(tmp_path / "captions.jsonl", TEXTS)
    for root in (tmp_path, tmp_path / "captions.jsonl"):
        source = XM3600(root)
        english = source.test("en")
        assert [english.text(i) for i in range(2)] == [["a dog", "dogs  run"], ["cat"]]
        assert english.image_name(0) == "000411001ff7dd4f.jpg"
        # a picture without captions in a language is not in its test set
        quechua = source.test("quz")
        assert quechua.text(0) == ["allqu"] and len(quechua) == 1
        assert quechua.image_id.tolist() == [0]
        refused("no captions in 'de'", source.test, "de")
    refused("2 pictures and 3 captions", source.check_sizes, ["en"])
    assert len(XM3600_CAPTIONS) == 36 and XM3600_CAPTIONS["zh"] == 7174


def test_xm3600__reads_the_lists_per_language(tmp_path):
    folder = tmp_path / "data/annotations/xm3600/de"
    folder.mkdir(parents=True)
    content = [
        {
            "image": "000411001ff7dd4f.jpg",
            "image/locale": "en",
            "caption": ["ein Hund", "Hunde"],
            "image_id": 7,
        }
    ]
    (folder / "test.json").write_text(json.dumps(content))
    for root in (tmp_path, tmp_path / "data", folder.parent):
        data = XM3600(root).test("de")
        assert data.text(0) == ["ein Hund", "Hunde"]
        assert data.image_id.tolist() == [7]
    with pytest.raises(FileNotFoundError, match="neither"):
        XM3600(tmp_path / "data/annotations/xm3600/de")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 does not fit"),
        ('{"image/locale": "en"}', "line 1 does not fit"),
        ('{"image/key": "a", "en": {"text": []}}', "line 1 does not fit"),
        ('{"image/key": "a", "en": {"caption": "two cats"}}', "not fit.*two cats"),
        ('{"image/key": "a"}\n{"image/key": "a"}', "a.jpg. occurs more than once"),
    ],
)
def test_xm3600__names_the_line_that_does_not_fit(tmp_path, line, message):
    (tmp_path / "captions.jsonl").write_text(line + "\n")
    refused(message, XM3600(tmp_path).test, "en")


# ------------------------------------------------------------- as downloaded
def as_downloaded(root, english=True):
    """Take away what the authors' scripts derive."""
    write_coco(root)
    corpus = root / "data/corpus/multilingual_coco/36langs"
    for folder in ("triplet", "vision_text", "plain_text", "embeddings"):
        shutil.rmtree(corpus / folder)
    (corpus / "coco_en-en.tsv.gz").unlink()
    if not english:
        (corpus / "coco_en.tsv.gz").unlink()
    return corpus


@pytest.mark.parametrize("english", [True, False])
@pytest.mark.parametrize("order", [("en", "de"), ("de", "en"), ("de",)])
def test_downloaded_files__are_enough(tmp_path, english, order):
    as_downloaded(tmp_path, english)
    write_pictures(tmp_path / "pictures")
    source = Coco36(tmp_path, tmp_path / "pictures")
    check_training(source, order)
    assert source.annotations("de", "test").text(1) == [GERMAN[2]]


def test_downloaded_files__rows_must_belong_together(tmp_path):
    corpus = as_downloaded(tmp_path)
    path = corpus / "coco_en-de.tsv.gz"
    # Blanks and marks may have been tidied up.
    write_gz(path, lines(["A red  dog.", "the dog runs", "two cats"], GERMAN))
    assert Coco36(tmp_path).train("de").text(0) == GERMAN[0]
    write_gz(path, lines([ENGLISH[k] for k in (1, 0, 2)], GERMAN))
    refused(r"coco_en-de.*train\.json differ.*row 0", Coco36(tmp_path).train, "de")
    for rows in (ENGLISH[:2], (*ENGLISH, "more")):
        write_gz(path, lines(rows, (*GERMAN, "mehr")[: len(rows)]))
        refused(f"{len(rows)} rows of .* 3 are needed", Coco36(tmp_path).train, "de")
    # A language that does not fit the one that was read before.
    write_gz(path, lines(["A red dog", *ENGLISH[1:]], GERMAN))
    source = Coco36(tmp_path)
    source.train("en")
    refused("English caption of row 0", source.train("de").text, 0)


def test_downloaded_files__say_what_is_missing(tmp_path):
    corpus = as_downloaded(tmp_path)
    with pytest.raises(FileNotFoundError, match="coco_en-fr.tsv.gz"):
        Coco36(tmp_path).train("fr").text(0)
    (tmp_path / "data/annotations/coco/en/train.json").unlink()
    refused("en/train.json", Coco36(tmp_path).train, "de", error=FileNotFoundError)
    (corpus / "coco_en-de.tsv.gz").unlink()
    (corpus / "coco_en.tsv.gz").unlink()
    refused("coco_en.tsv.gz", Coco36(tmp_path).train, "en", error=FileNotFoundError)
