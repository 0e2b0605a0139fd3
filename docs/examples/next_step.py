"""Learn pictures of two years, get a third, go on, compare, export, use the model."""

import sys
from pathlib import Path

from avalanche_clip import benchmarks, create_dual_encoder, distributed, export_model
from avalanche_clip.benchmarks.datasets import CaptionedImages
from avalanche_clip.evaluation.report import write_comparison
from avalanche_clip.training import CumulativeAll, Joint, run_stream

folder, out, updates = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
device = distributed.init_distributed()


def train(method, updates, until, name, **options):
    """Learn pictures until a year; files have names such as 2015-06-09_snowman.png."""
    model, data = create_dual_encoder("tiny-emoji-vit", "icons", device=device), {}
    for first_id, part in ((0, "train"), (10**6, "test")):
        names = sorted(f.name for f in (folder / part).iterdir() if f.name[:4] <= until)
        days, texts = zip(*((name[:10], name[11:-4]) for name in names))
        ids, counts = range(first_id, first_id + len(names)), [1] * len(names)
        pairs = CaptionedImages(names, texts, counts, ids, folder / part, single=True)
        facts = {"sample_ids": ids, "timestamps": days}
        data[part] = benchmarks.make_image_text_dataset(pairs, **facts)
    stream = benchmarks.time_stamped_benchmark(**data, period="year")
    plan = {"lr": 3e-4, "budget_iterations": updates, "seed": 0, "device": device}
    plan["train_mb_size"] = 32 // distributed.world_size()  # of each process
    strategy = method(model=model, **plan)
    stream = benchmarks.prepare_benchmark(stream, model)
    return model, run_stream(strategy, stream, out / name, **options).E


train(CumulativeAll, updates, "2015", "stream")  # two years are there
model, E = train(CumulativeAll, updates, "2016", "stream", resume="extend")
train(Joint, 3 * updates, "2016", "joint")
if distributed.is_main_process():
    print(E.round(3), write_comparison(out, [out / "stream", out / "joint"]))
    export_model(model, out / "open_clip", data="my pictures of 2014 to 2016")
    found = sorted(folder.glob("test/2016*"))[:3]
    print(model.classify(found, [f.stem[11:] for f in found]).round(decimals=2))
