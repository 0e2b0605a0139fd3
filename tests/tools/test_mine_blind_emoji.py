from avalanche_clip.benchmarks.datasets import BlindEmoji, load_emoji_table
from tests.scripts import load_script

tool = load_script("tools/mine_blind_emoji.py")


def test_mine__gives_the_pairs_that_are_shipped():
    shipped, table = BlindEmoji(), load_emoji_table()
    group = table.groups.index("Activities")
    pairs = [
        (table.ids[a], table.ids[b])
        for (a, b), pattern in zip(shipped.emoji_index, shipped.patterns, strict=True)
        if pattern == "Activities"
    ]
    assert tool.mine(group) == pairs
