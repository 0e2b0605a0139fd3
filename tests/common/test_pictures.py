"""Opening pictures with limits, and the one rule from any mode to RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from avalanche_clip.benchmarks import make_image_text_dataset as paired
from avalanche_clip.benchmarks.datasets import captioned
from avalanche_clip.benchmarks.datasets.mtil import images, readers
from avalanche_clip.benchmarks.datasets.mtil.table import DATASETS
from avalanche_clip.common.files import file_limits
from avalanche_clip.common.pictures import open_picture, picture_to_rgb, read_picture
from avalanche_clip.models.images.transforms import to_rgb
from tests.refused import refused

WHITE = (255, 255, 255)


def png(width, height, depth, colour, rows, *chunks):
    """A PNG file from raw rows of samples, with further chunks before the data."""

    def chunk(kind, data):
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = b"".join(chunk(*part) for part in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(image):
    assert image.mode == "RGB"
    return [tuple(row) for row in np.asarray(image).reshape(-1, 3).tolist()]


def every_way(content, tmp_path):
    """The colours of a picture by each way into the package; they must agree."""
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    ways = [
        read_picture(path),
        read_picture(content),
        picture_to_rgb(open_picture(path)),
        to_rgb(Image.open(path)),
        to_rgb(read_picture(path)),
        to_rgb(open_picture(content)),
    ]
    first, *others = [colours(way) for way in ways]
    assert all(other == first for other in others)
    return first


RED, CLEAR = (200, 0, 0), (10, 20, 30)
DEEP = (512, 1024, 2048, 512, 1024, 4096)
PALETTE = (b"PLTE", bytes(RED + CLEAR))


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


def key(*values):
    """The chunk that names the colour of transparent pixels."""
    return b"tRNS", words(*values)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # alpha over white: 100 * 0.6 + 255 * 0.4
        (saved(Image.new("RGBA", (1, 1), (100, 0, 255, 153))), [(162, 102, 255)]),
        (saved(Image.new("LA", (1, 1), (100, 153))), [(162, 162, 162)]),
        (saved(Image.new("RGBA", (1, 1), (1, 2, 3, 0))), [WHITE]),
        # colour keys
        (png(2, 1, 8, 2, [bytes(RED + CLEAR)], key(*CLEAR)), [RED, WHITE]),
        (png(2, 1, 8, 0, [b"\x05\x06"], key(5)), [WHITE, (6, 6, 6)]),
        (png(2, 1, 2, 0, [b"\x60"], key(2)), [(85, 85, 85), WHITE]),
        (png(2, 1, 4, 0, [b"\x3c"], key(3)), [WHITE, (204, 204, 204)]),
        (png(2, 1, 1, 0, [b"\x40"], key(0)), [WHITE, WHITE]),
        (png(2, 1, 1, 0, [b"\x40"], key(1)), [(0, 0, 0), WHITE]),
        (png(2, 1, 16, 0, [words(514, 515)], key(514)), [WHITE, (2, 2, 2)]),
        (png(2, 1, 16, 2, [words(*DEEP)], key(*DEEP[:3])), [WHITE, (2, 4, 16)]),
        # palettes: one clear colour, an alpha for each
        (png(2, 1, 8, 3, [b"\1\0"], PALETTE, (b"tRNS", b"\0")), [CLEAR, WHITE]),
        (
            png(2, 1, 8, 3, [b"\1\0"], PALETTE, (b"tRNS", b"\x99\xff")),
            [CLEAR, (222, 102, 102)],
        ),
        # 16 bits, one bit
        (
            png(4, 1, 16, 0, [words(0, 257, 32768, 65535)]),
            [(0, 0, 0), (1, 1, 1), (128, 128, 128), WHITE],
        ),
        (png(2, 1, 1, 0, [b"\x40"]), [(0, 0, 0), WHITE]),
    ],
)
def test_rule__same_colours_whichever_way(content, expected, tmp_path):
    assert every_way(content, tmp_path) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 300, 65535]], np.int32)), [0, 1, 255]),
        (Image.fromarray(np.array([[0, 300, 65535]], ">u2")), [0, 1, 255]),
        (Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)), [0, 51, 255]),
        (Image.new("PA", (1, 1)), [255]),
        (Image.new("RGBa", (1, 1), (0, 0, 0, 0)), [255]),
        (Image.new("La", (1, 1), (0, 0)), [255]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 55)), [200]),
        (Image.new("YCbCr", (1, 1), (90, 128, 128)), [90]),
        (Image.new("HSV", (1, 1), (0, 0, 90)), [90]),
        (Image.new("RGBX", (1, 1), (7, 7, 7, 0)), [7]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_rule__greys_of_other_modes(image, expected):
    assert colours(picture_to_rgb(image)) == [(value,) * 3 for value in expected]


def test_rule__lab_and_unknown_modes():
    picture = Image.new("RGB", (1, 1), (90, 120, 40))
    profile = ImageCms.createProfile
    lab = ImageCms.profileToProfile(
        picture, profile("sRGB"), profile("LAB"), outputMode="LAB"
    )
    found = colours(picture_to_rgb(lab))[0]
    assert np.abs(np.subtract(found, (90, 120, 40))).max() <= 3
    lab._mode = "XYZ"
    refused("XYZ", picture_to_rgb, lab)


@pytest.mark.parametrize("mode", ["PNG", "TIFF", "WEBP", "BMP"])
def test_rule__rgb_files_are_what_pillow_reads(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    content = saved(Image.fromarray(pixels), mode, **{"lossless": True})
    assert np.array_equal(np.asarray(read_picture(content)), pixels)
    given = Image.fromarray(pixels)
    assert picture_to_rgb(given) is given


def test_rule__palette_with_its_own_alpha():
    image = Image.new("P", (1, 1), 1)
    image.putpalette([9, 9, 9, 255, 0, 0, 0, 0], "RGBA")
    assert colours(picture_to_rgb(image)) == [WHITE]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 65536]], np.int32), "0 to 65536"),
        (np.array([[-1, 5]], np.int32), "-1 to 5"),
        (np.array([[0.0, 1.01]], np.float32), "1.01"),
        (np.array([[-0.5, 1]], np.float32), "-0.5"),
        (np.array([[0, 255]], np.float32), "255"),
        (np.array([[0.5, np.nan]], np.float32), "nan"),
    ],
)
def test_rule__values_outside_the_range_are_refused(array, message, tmp_path):
    refused(message, picture_to_rgb, Image.fromarray(array))
    path = tmp_path / "deep.tif"
    Image.fromarray(array).save(path)
    for way in (read_picture, open_picture, Image.open):
        with pytest.raises(ValueError, match=r"deep\.tif.*" + message):
            picture_to_rgb(way(path))


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_open__of_several_frames_the_first(format):
    frames = [Image.new("RGB", (4, 4), c) for c in (RED, CLEAR, WHITE)]
    options = {"save_all": True, "append_images": frames[1:]}
    if format == "WEBP":
        options["lossless"] = True
    assert set(colours(read_picture(saved(frames[0], format, **options)))) == {RED}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "P"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif__turns_on_request_at_once_or_later(mode, format):
    if format == "WEBP" and mode in ("I;16", "P"):
        pytest.skip("no such WebP")
    picture = Image.fromarray(np.array([[1000, 60000]], np.uint16))
    if mode != "I;16":
        picture = Image.fromarray(np.array([[3, 230]], np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if format == "WEBP" else {}
    content = saved(picture, format, exif=exif, **options)
    plain = read_picture(content)
    assert plain.size == (2, 1)
    turned = picture_to_rgb(open_picture(content), exif_rotation=True)
    assert turned.size == (1, 2)
    assert colours(turned) == colours(ImageOps.exif_transpose(plain))
    assert colours(picture_to_rgb(plain, exif_rotation=True)) == colours(turned)
    assert colours(picture_to_rgb(turned, exif_rotation=True)) == colours(turned)


@pytest.fixture
def small_limit(request, monkeypatch):
    """Pictures above 100 pixels are too large, by our setting or by Pillow's."""
    if request.param == "ours":
        monkeypatch.setattr(file_limits, "picture_pixels", 100)
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("small_limit", ["ours", "pillow"], indirect=True)
@pytest.mark.parametrize("size", [(11, 10), (20, 11), (1000, 1000)])
def test_limit__larger_pictures_are_refused_before_decoding(
    size, small_limit, tmp_path
):
    path = tmp_path / "large.png"
    content = png(*size, 8, 0, [b"\0"])  # no such pixels: decoding would fail
    path.write_bytes(content)
    for source in (path, content):
        refused(f"{size[0]} x {size[1]} .* limit of 100", read_picture, source)
    refused(r"large\.png", read_picture, path)
    refused("limit of 100", picture_to_rgb, Image.new("L", size))
    assert read_picture(saved(Image.new("L", (10, 10)))).size == (10, 10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limit__ours_may_be_above_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(file_limits, "picture_pixels", 1000)
    assert read_picture(saved(Image.new("L", (20, 20)))).size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 10


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
WHOLE = saved(Image.fromarray(NOISE))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0" * 500, "zero bytes"),
        (b"no picture at all", "no format"),
        (saved(Image.fromarray(NOISE))[:2000], "truncated"),
        (saved(Image.fromarray(NOISE), "JPEG")[:700], "truncated"),
        (saved(Image.fromarray(NOISE))[:30], "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
    ],
)
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_open__what_is_no_picture_is_named(content, cause, ending, tmp_path):
    path = tmp_path / f"cat{ending}"
    path.write_bytes(content)
    refused(rf"cat{ending}.*{cause}", read_picture, path)
    refused(f"row 7 of a.tar.*{cause}", read_picture, content, "row 7 of a.tar")
    refused(f"a cat.*{cause}", read_picture, path, "a cat")


def test_rule__drawings_that_another_program_would_run_are_refused(tmp_path):
    path = tmp_path / "drawing.eps"
    Image.new("RGB", (4, 4)).save(path)
    for way in (read_picture, Image.open):
        with pytest.raises(ValueError, match=r"drawing\.eps is an EPS drawing"):
            picture_to_rgb(way(path))


def test_open__flipped_bytes_give_a_picture_or_our_error(tmp_path):
    whole = saved(Image.fromarray(NOISE))
    path = tmp_path / "flipped.png"
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert read_picture(path).mode == "RGB"
        except ValueError as error:
            assert "flipped.png" in str(error)


def test_open__absent_files_and_folders(tmp_path):
    refused(r"gone\.png", open_picture, tmp_path / "gone.png", error=FileNotFoundError)
    refused("a folder", open_picture, tmp_path)


@pytest.mark.parametrize("content", [WHOLE[:2000], WHOLE[:60] + b"\xff" * 60])
def test_rule__a_damaged_picture_opened_elsewhere_is_named(content, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(content)
    refused(r"cut\.png is not a whole picture", picture_to_rgb, Image.open(path))
    with pytest.raises(ValueError, match="A picture is not a whole picture"):
        picture_to_rgb(Image.open(io.BytesIO(content)))


# ------------------------------------------------ readers take the common way
CLEAR_PALETTE = png(2, 1, 8, 3, [b"\1\0"], PALETTE, (b"tRNS", b"\0"))
READERS = {
    "captioned": lambda path: captioned.load_image(path.parent, path.name),
    "folder": lambda path: images.FolderFiles(path.parent, [path.name])[0][0],
    "classes": lambda path: images.ClassImages([(Image.open(path), 0)], [0], [0])[0][0],
    "pairs": lambda path: to_rgb(paired([(Image.open(path), "a")])[0][0]),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers__give_the_pixels_of_the_rule(reader, tmp_path):
    path = tmp_path / "a.png"
    for content, expected in (
        (CLEAR_PALETTE, [CLEAR, WHITE]),
        (
            saved(Image.fromarray(np.array([[257, 65535]], np.uint16))),
            [(1,) * 3, WHITE],
        ),
        (saved(Image.new("RGBA", (1, 1), (100, 0, 255, 153))), [(162, 102, 255)]),
    ):
        path.write_bytes(content)
        assert colours(READERS[reader](path)) == expected


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_readers__refuse_large_and_damaged_pictures(reader, tmp_path, monkeypatch):
    path = tmp_path / "b.png"
    path.write_bytes(WHOLE[:2000])
    refused(r"b\.png.*truncated", READERS[reader], path)
    path.write_bytes(WHOLE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(r"b\.png has 40 x 40 = 1600 pixels.*1000", READERS[reader], path)


def test_readers__the_pet_images_and_loaders_too(tmp_path):
    class OxfordIIITPet:
        _images_folder = tmp_path
        _images = [tmp_path / "cat.jpg"]
        _labels = [0]

    (tmp_path / "cat.jpg").write_bytes(CLEAR_PALETTE)
    part = readers._whole(DATASETS["OxfordPet"], OxfordIIITPet())
    assert colours(part[0][0]) == [CLEAR, WHITE]
