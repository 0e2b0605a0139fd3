"""What a run of the study over time says: its figures, as text."""

from __future__ import annotations

from typing import Any


def summary_line(result: Any) -> dict[str, float]:
    """Figures of one run for the table, recall in percent."""
    gallery = {}
    if "gallery" in result.matrices:
        last = result.matrix("image_to_text_R@1", "gallery")[-1, 0]
        gallery["gallery_i2t"] = 100 * last
    units = result.compute["total_macs"] / result.compute["macs"][0]["train"]
    if len(result.E) == 1:  # one training, no step to compare it with
        units = float("nan")
    levels = result.summary["test"].get("mean_R@1", {})
    names = ("in_domain", "backward", "forward", "forgetting")
    return {
        "cost": units,
        **{name: 100 * levels.get(name, float("nan")) for name in names},
        **gallery,
        "minutes": sum(result.results["seconds"]["train"]) / 60,
    }


def table(runs: dict[str, list[Any]]) -> str:
    """Format mean and spread over seeds: levels, and what the last model knows."""
    from avalanche_clip.evaluation.report.comparison import text_table

    rows = [text_table({m: [summary_line(r) for r in rs] for m, rs in runs.items()})]
    rows.append("mean R@1 of both directions in percent, levels over the 6 x 6 matrix;")
    rows.append("forgetting: from the best result on each earlier step to the last;")
    if all("gallery" in r.matrices for rs in runs.values() for r in rs):
        rows.append("gallery_i2t: image->text R@1 over all 1,911 emoji at the end;")
    rows.append("cost in plain budgets of one step (training, teacher, search).")
    if "patching" in runs:
        rows.append("patching trains without the drawings held out for its search.")
    first = next(iter(runs.values()))
    ends = {"before the stream": [_per_step(r, r.before) for r in first]}
    ends |= {m: [_per_step(r, r.E[-1]) for r in rs] for m, rs in runs.items()}
    rows.append("\nR@1 on each step after the last one was learned:\n")
    rows.append(text_table(ends))
    return "\n".join(rows)


def _per_step(result: Any, recall: Any) -> dict[str, float]:
    labels = result.results["data"]["labels"]["test"]
    return dict(zip(labels, (100 * recall).tolist(), strict=True))


def validation_score(result: Any) -> float:
    """What ``--search`` compares: new and old steps count alike."""
    levels = result.summary["valid"]["mean_R@1"]
    return float(levels["in_domain"] + levels["backward"]) / 2
