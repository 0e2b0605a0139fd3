"""Build the embedded emoji data of ``avalanche_clip`` from public npm packages.

The result is one sprite sheet per drawing style (lossy WebP, 48 x 48 pixels
per emoji on white), one compressed table (ids, versions, groups, names and
keywords in 36 languages) and the licence texts. Two runs with the same Pillow
and rasteriser write the same bytes: nothing depends on the clock or on the
order of directory listings.

Build-only requirement: ``resvg-py`` (OpenMoji is published as SVG only).

Run::

    pip install resvg-py
    python tools/build_emoji_data.py PACKAGES --download

``PACKAGES`` is a folder with one unpacked package per sub-folder, named
``<package>-<version>/package`` as ``npm pack`` and ``tar`` leave them;
``--download`` fetches those that are missing.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "openmoji": "17.0.0",
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
}

# Day on which each Emoji version became official (UTC). Versions 0.6 and 0.7
# are the emoji of Unicode 6.0 and 7.0, which predate numbered Emoji versions.
RELEASE_DATES = {
    "0.6": "2010-10-11",
    "0.7": "2014-06-16",
    "1.0": "2015-06-09",
    "2.0": "2015-11-12",
    "3.0": "2016-06-03",
    "4.0": "2016-11-22",
    "5.0": "2017-06-20",
    "11.0": "2018-06-05",
    "12.0": "2019-03-05",
    "12.1": "2019-10-21",
    "13.0": "2020-03-10",
    "13.1": "2020-09-15",
    "14.0": "2021-09-14",
    "15.0": "2022-09-13",
    "15.1": "2023-09-12",
    "16.0": "2024-09-10",
}

# The order in which CLL-CLIP (arXiv 2401.17186) presents its languages.
LANGUAGES = (
    "en it de fil tr uk nl bn he fi sv quz fa mi fr el zh id "
    "sw no hi da te th pt ru ro pl hr es vi ar cs ko ja hu"
).split()
CLDR_LOCALES = {"quz": "qu"}  # CLDR files Cusco Quechua under the macrolanguage

# The five hair styles are the only emoji of "Component": too few for a domain.
MERGED_GROUPS = {"Component": "People & Body"}

TILE = 48
OPENMOJI_RENDER_SIZE = 4 * TILE
EXPECTED_COUNT = 1911
EXPECTED_STEPS = (719, 139, 446, 264, 175, 168)
STEP_YEARS = ((2010,), (2014,), (2015,), (2016, 2017), (2018, 2019), range(2020, 2025))

VARIATION_SELECTOR = "\ufe0f"
DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent
    / "avalanche_clip"
    / "benchmarks"
    / "datasets"
    / "data"
)


def package_root(folder: Path, name: str) -> Path:
    """Return the unpacked root of one package.

    :raises FileNotFoundError: if the package is not in ``folder``.
    """
    root = folder / f"{name}-{PACKAGES[name]}" / "package"
    if not (root / "package.json").is_file():
        raise FileNotFoundError(
            f"{root} is not an unpacked npm package; run with --download or unpack "
            f"{name}@{PACKAGES[name]} there."
        )
    return root


def download_packages(folder: Path) -> None:
    """Fetch and unpack every missing package with ``npm pack``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGES.items():
        target = folder / f"{name}-{version}"
        if (target / "package" / "package.json").is_file():
            continue
        archive = folder / f"{name}-{version}.tgz"
        if not archive.is_file():
            command = ["npm", "pack", "--silent", f"{name}@{version}"]
            subprocess.run(command, cwd=folder, check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")


def load_emoji(folder: Path) -> list[dict[str, Any]]:
    """Read the emoji without skin tones, oldest first, then in Unicode's order.

    Release order keeps an emoji's index when a later Emoji version is added.
    """
    source = package_root(folder, "emoji-datasource-google") / "emoji.json"
    emoji = json.loads(source.read_text(encoding="utf-8"))
    unknown = {e["added_in"] for e in emoji} - set(RELEASE_DATES)
    if unknown:
        raise ValueError(
            f"Emoji versions {sorted(unknown)} have no release date; add them to "
            "RELEASE_DATES."
        )
    emoji.sort(key=lambda e: (RELEASE_DATES[e["added_in"]], e["sort_order"]))
    check_counts(emoji)
    return emoji


def check_counts(emoji: list[dict[str, Any]]) -> None:
    """Refuse a source whose time steps are not the ones the package documents."""
    years = [int(RELEASE_DATES[e["added_in"]][:4]) for e in emoji]
    steps = tuple(sum(y in step for y in years) for step in STEP_YEARS)
    if len(emoji) != EXPECTED_COUNT or steps != EXPECTED_STEPS:
        raise ValueError(
            f"found {len(emoji)} emoji in steps {steps}, expected {EXPECTED_COUNT} "
            f"in {EXPECTED_STEPS}; use the package versions named in PACKAGES."
        )


def characters(unified: str) -> str:
    """Turn ``"1F1E9-1F1EA"`` into the string of those code points."""
    return "".join(chr(int(point, 16)) for point in unified.split("-"))


def spellings(text: str) -> list[str]:
    """List an emoji's spellings with and without the variation selector."""
    bare = text.replace(VARIATION_SELECTOR, "")
    return list(dict.fromkeys([text, bare, bare + VARIATION_SELECTOR]))


def read_annotations(folder: Path, language: str) -> list[dict[str, Any]]:
    """Return CLDR's own and derived annotations of a language, in that order."""
    locale = CLDR_LOCALES.get(language, language)
    sources = []
    for package, inner in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        root = package_root(folder, package)
        path = root / inner / locale / "annotations.json"
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            sources.append(content[inner]["annotations"])
    if not sources:
        raise FileNotFoundError(f"no CLDR annotations for {language} ({locale}).")
    return sources


def annotate(sources: list[dict[str, Any]], text: str) -> tuple[str | None, list[str]]:
    """Return the name and the keywords of one emoji, ``(None, [])`` if unnamed.

    Further spoken names count as keywords; a keyword that repeats the name or
    another keyword is dropped, so that every caption of an emoji is distinct.
    """
    for source in sources:
        for spelling in spellings(text):
            entry = source.get(spelling)
            if entry and entry.get("tts"):
                words = [*entry["tts"], *entry.get("default", [])]
                distinct: dict[str, str] = {}
                for word in (" ".join(word.split()) for word in words):
                    if word:
                        distinct.setdefault(word.casefold(), word)
                name, *keywords = distinct.values()
                return name, keywords
    return None, []


def build_table(folder: Path, emoji: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the table: one header object, then one object per language."""
    group = [MERGED_GROUPS.get(e["category"], e["category"]) for e in emoji]
    subgroup = [e["subcategory"] for e in emoji]
    by_order = sorted(range(len(emoji)), key=lambda i: emoji[i]["sort_order"])
    groups = list(dict.fromkeys(group[i] for i in by_order))
    subgroups = list(dict.fromkeys(subgroup[i] for i in by_order))
    header = {
        "format": 1,
        "sources": PACKAGES,
        "release_dates": RELEASE_DATES,
        "languages": LANGUAGES,
        "groups": groups,
        "subgroups": subgroups,
        "id": [e["unified"] for e in emoji],
        "version": [e["added_in"] for e in emoji],
        "group": [groups.index(g) for g in group],
        "subgroup": [subgroups.index(s) for s in subgroup],
    }
    rows = [header]
    for language in LANGUAGES:
        sources = read_annotations(folder, language)
        pairs = [annotate(sources, characters(e["unified"])) for e in emoji]
        names, keywords = zip(*pairs, strict=True)
        rows.append({"language": language, "names": names, "keywords": keywords})
    return rows


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects as gzipped JSON lines without name or time in the header."""
    lines = [json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows]
    content = "\n".join(lines).encode("utf-8") + b"\n"
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def on_white(image: Image.Image) -> Image.Image:
    """Composite an image with transparency on white and scale it to one tile."""
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    # Compositing comes first: scaling straight alpha would bleed the hidden
    # colour of transparent pixels into the edges.
    return canvas.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)


def datasource_reader(folder: Path, name: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function that opens the drawing of one emoji-datasource package."""
    style = name.rsplit("-", 1)[1]
    images = package_root(folder, name) / "img" / style / "64"
    return lambda e: Image.open(images / e["image"])


def openmoji_reader(folder: Path) -> Callable[[dict[str, Any]], Any]:
    """Return a function that rasterises the OpenMoji drawing of an emoji."""
    import resvg_py

    drawings = package_root(folder, "openmoji") / "color" / "svg"

    def read(e: dict[str, Any]) -> Image.Image:
        for text in spellings(characters(e["unified"])):
            path = drawings / ("-".join(f"{ord(c):04X}" for c in text) + ".svg")
            if path.is_file():
                png = resvg_py.svg_to_bytes(
                    svg_path=str(path),
                    width=OPENMOJI_RENDER_SIZE,
                    height=OPENMOJI_RENDER_SIZE,
                    skip_system_fonts=True,  # the result must not depend on fonts
                )
                return Image.open(io.BytesIO(bytes(png)))
        raise FileNotFoundError(f"OpenMoji has no drawing of {e['unified']}.")

    return read


def build_sheet(
    emoji: list[dict[str, Any]], read: Callable[[dict[str, Any]], Any]
) -> Image.Image:
    """Paste all drawings row by row into a square-ish white sheet."""
    columns = math.isqrt(len(emoji) - 1) + 1
    rows = -(-len(emoji) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * TILE), "white")
    for i, e in enumerate(emoji):
        with read(e) as image:
            tile = on_white(image)
        sheet.paste(tile, (i % columns * TILE, i // columns * TILE))
    return sheet


def copy_licences(folder: Path, output: Path) -> None:
    """Copy the licence texts that the packages bring along."""
    target = output / "LICENSES"
    target.mkdir(parents=True, exist_ok=True)
    for package, source, name in (
        ("openmoji", "LICENSE.txt", "CC-BY-SA-4.0.txt"),
        ("cldr-annotations-full", "LICENSE", "Unicode-3.0.txt"),
        ("emoji-datasource-google", "LICENSE", "MIT-emoji-data.txt"),
    ):
        shutil.copyfile(package_root(folder, package) / source, target / name)


def build(folder: Path, output: Path) -> None:
    """Write the table, the three sheets and the licence texts to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    emoji = load_emoji(folder)
    rows = build_table(folder, emoji)
    write_table(output / "emoji_table.jsonl.gz", rows)
    for row in rows[1:]:
        named = sum(name is not None for name in row["names"])
        print(f"{row['language']}: {named} of {len(emoji)} emoji named")
    for style, read in (
        ("noto", datasource_reader(folder, "emoji-datasource-google")),
        ("openmoji", openmoji_reader(folder)),
        ("twemoji", datasource_reader(folder, "emoji-datasource-twitter")),
    ):
        path = output / f"emoji_{style}.webp"
        build_sheet(emoji, read).save(path, "WEBP", quality=90, method=6)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    copy_licences(folder, output)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="folder of unpacked packages")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--download", action="store_true", help="run npm pack first")
    arguments = parser.parse_args()
    if arguments.download:
        download_packages(arguments.packages)
    build(arguments.packages, arguments.output)


if __name__ == "__main__":
    main()
