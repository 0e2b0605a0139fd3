"""Print the table of what each method can do, from the rows of its tests.

    python tools/compatibility_table.py > docs/compatibility.rst

Each "yes" is a test in ``tests/methods/`` that runs for the method; each number is a
reason why not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAD = """\
Compatibility
=============

What each method can do beside training. The table is printed by
``tools/compatibility_table.py`` from the rows of ``tests/methods/rows.py``: a "yes" is
a test that runs for that method, a number the reason why there is none.

Every method trains what it says and nothing else, leaves frozen parts alone, and is
left as it was by evaluation and by further plugins that do nothing.
"""


def lines(rows: Mapping[str, Any], behaviours: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the page.

    :param rows: by name, with ``cannot``: behaviour -> reason.
    :param behaviours: column -> what it means.
    """
    yield HEAD
    yield from (f"- **{name}**: {meaning}." for name, meaning in behaviours.items())
    reasons: list[str] = []
    yield "\n.. list-table::\n   :header-rows: 1\n"
    cells = ["method", *behaviours]
    table = [cells]
    for name, row in rows.items():
        cells = [name]
        for behaviour in behaviours:
            reason = row.cannot.get(behaviour)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"({reasons.index(reason) + 1})" if reason else "yes")
        table.append(cells)
    for cells in table:
        yield from (f"   {' ' if k else '*'} - {cell}" for k, cell in enumerate(cells))
    yield ""
    yield from (f"({n}) {reason}\n" for n, reason in enumerate(reasons, 1))


def page() -> str:
    """Return the page."""
    from tests.methods.rows import BEHAVIOURS, ROWS

    return "\n".join(lines(ROWS, BEHAVIOURS)).rstrip() + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(page(), end="")
