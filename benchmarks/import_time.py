"""Time of `import avalanche_clip` against importing avalanche.

    python benchmarks/import_time.py

Each import runs in a fresh interpreter; start-up of Python itself is measured
in the same way and taken off.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TARGET_SECONDS = 0.3


def seconds(statement: str, repeats: int) -> float:
    """Median time of a fresh interpreter that runs a statement."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> int:
    """Measure and print; return 1 if the target was missed."""
    start = seconds("pass", 7)
    ours = seconds("import avalanche_clip", 7) - start
    avalanche = seconds("import avalanche", 1) - start
    probe = (
        "import sys, avalanche_clip; "
        "sys.exit(any(m in sys.modules for m in ('avalanche', 'torch')))"
    )
    clean = subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    verdict = "reached" if ours < TARGET_SECONDS and clean else "NOT reached"
    print(
        f"import avalanche_clip {ours:7.3f} s   (loads avalanche or torch: {not clean})"
    )
    print(f"import avalanche      {avalanche:7.3f} s   ratio {avalanche / ours:.0f}")
    print(f"target < {TARGET_SECONDS} s without avalanche: {verdict}")
    return 0 if verdict == "reached" else 1


if __name__ == "__main__":
    sys.exit(main())
