"""The sheet of held-out icons, and what the notices owe to the artists.

Held out are names, by a hash. A few of them are taught all the same: by an icon whose
name has the same words in another order (training shuffles words), or by an emoji of
that name or keyword, in the training on 2010 or in a stream of later ones. These are
left out, and so are drawings that are trained on under another name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import icon_web
import torch
from icon_colours import Coloured
from PIL import Image

MOST_NAMES, MOST_BYTES = 1_500, 1_500_000
# A picture is shipped on terms that can be met by naming its artist; whether a font's
# licence (OFL) or a file's (MPL) extends to a picture need not be settled for it.
LICENCES = icon_web.LICENCES - {"OFL-1.1", "MPL-2.0"}

LICENCE_TEXTS = {
    "MIT": "LICENSES/MIT.txt",
    "ISC": "LICENSES/ISC.txt",
    "BSD-3-Clause": "LICENSES/BSD-3-Clause.txt",
    "Apache-2.0": "LICENSES/Apache-2.0.txt",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MPL-2.0": "https://mozilla.org/MPL/2.0/",
    "OFL-1.1": "https://openfontlicense.org/open-font-license-official-text/",
}

SHEET_HEAD = f"""Held-out icons: sources and licences
====================================

icons_held_out.webp holds one icon for each name in icons_held_out.json, which also
says from which set it is. They were made by tools/train_icons.py from the npm package
{icon_web.PACKAGE} {icon_web.VERSION}. They are not covered by the MIT licence of the
surrounding package, but each by that of its set. LICENSES lies beside this file.

What was changed: words of style were taken out of the names; each icon was zoomed to
what is drawn, scaled to 48 x 48 pixels, given colours where it had none of its own, put
on a plain background and compressed as lossy WebP.
"""

WEIGHTS_HEAD = f"""Weights and tokenizer: what they were made from
===============================================

emoji_bpe.json
  A vocabulary made by tools/build_emoji_tokenizer.py from the English names and
  keywords of emoji: Unicode Common Locale Data Repository (CLDR), Copyright Unicode,
  Inc., Unicode License v3 (Unicode-3.0).

tiny-emoji-emoji-2010.safetensors, tiny-emoji-vit-emoji-2010.safetensors
  Trained by tools/train_emoji_2010.py on drawings of 719 emoji by Noto Emoji
  (Copyright Google LLC, Apache-2.0) and OpenMoji (CC-BY-SA-4.0), with names and
  keywords from CLDR. See also the NOTICE of the data sets.

tiny-emoji-icons.safetensors, tiny-emoji-vit-icons.safetensors
  Trained by tools/train_icons.py on the same drawings, and on icons of the sets below
  from the npm package {icon_web.PACKAGE} {icon_web.VERSION}. The weights hold no
  picture; the sets are named because their authors are to be named where their work is
  used. LICENSES is a folder of avalanche_clip/benchmarks/datasets/data.
"""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, in an order of their own.

    >>> words("Tree evergreen") == words("evergreen tree")
    True
    """
    return tuple(sorted(text.lower().split()))


def taught_words(captions: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the words of all that is trained on, here or in a stream of emoji.

    :param captions: names of icons; names and keywords of all emoji are added.
    """
    from avalanche_clip.benchmarks.datasets import load_emoji_table

    table = load_emoji_table()
    keywords = (text for texts in table.keywords() for text in texts)
    return {words(text) for text in (*captions, *table.names, *keywords)}


def choose_held_out(
    held: icon_web.DrawnIcons,
    trained: icon_web.DrawnIcons,
    sets: Sequence[icon_web.IconSet],
) -> dict[str, int]:
    """Choose one drawing per held-out name that nothing teaches.

    :param held: the held-out drawings.
    :param trained: the others.
    :param sets: of the package, for the licences.
    :return: name -> position in ``held``, by name.
    """
    taught = taught_words(trained.captions)
    seen = {_digest(trained, item) for item in range(len(trained))}
    licence = {one.prefix: one.info["license"]["spdx"] for one in sets}
    found: dict[tuple[str, ...], list[int]] = {}
    for item, name in enumerate(held.captions):
        if (
            words(name) not in taught
            and licence[held.prefixes[item]] in LICENCES
            and _digest(held, item) not in seen
        ):
            found.setdefault(words(name), []).append(item)

    def rank(item: int) -> tuple[str, float]:
        name = held.captions[item]
        return name, icon_web.share(held.prefixes[item] + name)

    items = [min(same, key=rank) for same in found.values()]
    names = {held.captions[item]: item for item in items}
    kept = sorted(names, key=icon_web.share)[:MOST_NAMES]
    return {name: names[name] for name in sorted(kept)}


def _digest(icons: icon_web.DrawnIcons, item: int) -> bytes:
    image, _ = icons[item]
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def write_held_out(
    held: icon_web.DrawnIcons,
    chosen: dict[str, int],
    sets: Sequence[icon_web.IconSet],
    out: Path,
) -> None:
    """Write the sheet, its table and its notice.

    :param chosen: of :func:`choose_held_out`.
    :raises ValueError: if the sheet is larger than may be shipped.
    """
    columns = math.isqrt(len(chosen) - 1) + 1
    rows, side = -(-len(chosen) // columns), icon_web.SIDE
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for place, (name, item) in enumerate(chosen.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(2**32 * icon_web.share(name)))
            tile = Coloured(None).colour(held[item][0])
        sheet.paste(tile, (place % columns * side, place // columns * side))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "icons_held_out.webp"
    sheet.save(path, "WEBP", quality=90, method=6)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes; {MOST_BYTES} may be shipped. "
            "Lower MOST_NAMES or the quality."
        )
    used = [held.prefixes[item] for item in chosen.values()]
    table = {"names": list(chosen), "sets": used}
    text = json.dumps(table, indent=0, sort_keys=True)
    (out / "icons_held_out.json").write_text(text + "\n", encoding="utf-8")
    notice = "\n".join([SHEET_HEAD, *credits(sets, used)])
    (out / "NOTICE_icons").write_text(notice, encoding="utf-8")


def write_weights_notice(
    trained: icon_web.DrawnIcons, sets: Sequence[icon_web.IconSet], out: Path
) -> None:
    """Write the notice that lies beside the weights.

    :param trained: drawings that are trained on.
    """
    out.mkdir(parents=True, exist_ok=True)
    notice = "\n".join([WEIGHTS_HEAD, *credits(sets, trained.prefixes)])
    (out / "NOTICE").write_text(notice, encoding="utf-8")


def credits(sets: Sequence[icon_web.IconSet], used: Iterable[str]) -> list[str]:
    """Return lines that name the sets by their licences: title, author, addresses.

    :param used: prefixes of sets.
    """
    lines: dict[str, list[str]] = {}
    prefixes = set(used)
    for one in sorted(sets, key=lambda one: one.prefix):
        if one.prefix in prefixes:
            author, licence = one.info["author"], one.info["license"]
            addresses = [a["url"] for a in (author, licence) if a.get("url")]
            title = f"  {one.info['name']} ({one.prefix}), by {author['name']}"
            entry = [title, *(f"    {address}" for address in addresses)]
            lines.setdefault(licence["spdx"], []).extend(entry)
    return [
        line
        for spdx in sorted(lines)
        for line in (f"{spdx}: {LICENCE_TEXTS[spdx]}", *lines[spdx], "")
    ]
