"""Made-up results of runs."""

import numpy as np

LABELS = ["2010", "2014 & <b>", "2015"]


def make_results(method="Sequential", seed=0, steps=3, tests=3, **changes):
    rng = np.random.default_rng([seed, len(method)])
    matrices = {
        metric: {
            "before": (rng.random(tests) * scale).tolist(),
            "E": (rng.random((steps, tests)) * scale).tolist(),
        }
        for metric, scale in (
            ("image_to_text_R@1", 1),
            ("mean_R@1", 1),
            ("image_to_text_median_rank", 50),
        )
    }
    results = {
        "method": method,
        "seed": seed,
        "config": {"train_mb_size": 128, "plugins": [{"class": "Patching<a>"}]},
        "versions": {"python": "3.11"},
        "revision": {"commit": "0123456789abcdef", "dirty": True},
        "data": {
            "hash": "abc123",
            "counts": {"train": [10, 20, 30], "test": [1, 2, 3]},
            "labels": {"train": LABELS, "test": LABELS},
        },
        "samples": [100] * steps,
        "macs": {"macs": [{"train": 2e9, "teacher": 1e9}] * steps, "total_macs": 9e9},
        "seconds": {"train": [1.5] * steps, "eval": [0.5] * (steps + 1)},
        "matrices": {"test": matrices},
        "summary": {},
    }
    return results | changes
