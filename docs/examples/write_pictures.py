"""Write drawings of emoji into folders, named by date and caption.

Usage: python write_pictures.py FOLDER [NUMBER PER YEAR]. ``train`` gets the drawings of
one artist, ``test`` those of another, of emoji that came out from 2014 to 2016.
"""

import sys
from datetime import datetime, timezone
from pathlib import Path

from avalanche_clip.benchmarks.datasets import EmojiImages, load_emoji_table

folder, number = Path(sys.argv[1]), int([*sys.argv, 50][2])
table = load_emoji_table()
days = [datetime.fromtimestamp(t, timezone.utc).date() for t in table.timestamps]
for part, style in (("train", "noto"), ("test", "twemoji")):
    (folder / part).mkdir(parents=True, exist_ok=True)
    images = EmojiImages(style)
    for year in (2014, 2015, 2016):
        rows = [row for row, day in enumerate(days) if day.year == year][:number]
        for row in rows:
            name = table.names[row].replace(":", "").replace("/", " ")
            images[row].save(folder / part / f"{days[row]}_{name}.png")
