"""What sharing out weights and cutting batches costs and saves.

    python benchmarks/sharded_training.py

Trains a transformer CLIP of some million weights with AdamW, each setting in fresh
processes: the whole batch in one process, in two with DDP and in two with FSDP2 (half
a batch each), and in one process in parts, without and with activations computed again.
Prints what a process holds after a step (weights, gradients, moments), its highest
memory above what it had before the model was made, and pairs per second. Two processes
with FSDP2 should hold at most 0.55 times as much as with DDP, and losses must agree
within 1e-3. On the CPU the highest memory includes what the allocator keeps of gathered
blocks; ``--backend nccl`` measures the memory of GPUs instead.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip import distributed
from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import MethodPlugin, Sequential

LIMIT, NEAR, BATCH, STEPS = 0.55, 1e-3, 16, 3
SMALL = (64, 1)
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "one process, 8 parts": (1, {"accumulation_steps": 8}),
    "one process, 8 parts, recomputed": (1, {"accumulation_steps": 8, "again": True}),
    "two processes, DDP": (2, {}),
    "two processes, FSDP2": (2, {"sharding": "fsdp2"}),
}


def config(width: int, layers: int) -> dict[str, Any]:
    """A CLIP of equal towers."""
    image = {"layers": layers, "width": width, "patch_size": 16, "image_size": 64}
    text = {"layers": layers, "width": width, "heads": width // 64, "vocab_size": 3584}
    return {
        "model_cfg": {
            "embed_dim": 256,
            "vision_cfg": image,
            "text_cfg": {**text, "context_length": 16},
        },
        "tokenizer": {"type": "json", "preset": "emoji_bpe.json"},
    }


class Timer(MethodPlugin, supports_distributed=True):
    """Notes when steps end, and their losses."""

    stateless = True

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.losses: list[float] = []
        self.held = 0

    def iteration_completed(self, strategy: Any) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(float(strategy.loss))
        weights = list(strategy.model.parameters())
        moments = [v for e in strategy.optimizer.state.values() for v in e.values()]
        tensors = [*weights, *(p.grad for p in weights), *moments]
        parts = [getattr(t, "_local_tensor", t) for t in tensors if t is not None]
        self.held = sum(t.numel() * t.element_size() for t in parts)


class Watch(threading.Thread):
    """Notes the highest memory of this process, looking every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        gc.collect()
        self.start_bytes = self.highest = self.now()
        self.over = threading.Event()

    @staticmethod
    def now() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def run(self) -> None:
        while not self.over.wait(0.003):
            self.highest = max(self.highest, self.now())


def data(model: Any) -> Any:
    """A stream of one step of random pairs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH * STEPS, 3, 64, 64, generator=generator)
    pairs = [(image, f"face {k}") for k, image in enumerate(images)]
    times = np.arange(len(pairs), dtype=float)
    benchmark = time_stamped_benchmark(
        make_image_text_dataset(pairs, timestamps=times), num_experiences=1
    )
    plain = torch.nn.Identity()
    return prepare_benchmark(
        benchmark, model, train_transform=plain, eval_transform=plain
    )


def train(
    rank: int, count: int, port: int, options: dict, sizes: Any, out: Any
) -> None:
    """Train in one process of some, and report."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if count > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        device = distributed.init_distributed(options.pop("backend"))
    elif options.pop("backend") == "nccl":
        device = torch.device("cuda")
    again = options.pop("again", False)
    settings = {"device": device, "train_mb_size": BATCH // count, **options}
    fit(SMALL, again, settings)  # what is loaded once
    watch = Watch()
    watch.start()
    timer = fit(sizes, again, settings)
    watch.over.set()
    used = watch.highest - watch.start_bytes
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated()
    if rank == 0:
        speed = BATCH / float(np.median(np.diff(timer.times)))
        out.put((used, speed, timer.losses, timer.held))
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def fit(sizes: Any, again: bool, settings: dict[str, Any]) -> Timer:
    """Train a model of some size; return what was noted of its steps."""
    torch.manual_seed(0)
    model = create_dual_encoder(config(*sizes), device=settings["device"])
    model.set_grad_checkpointing(again)
    timer = Timer()
    strategy = Sequential(
        model=model,
        plugins=[timer],
        evaluator=EvaluationPlugin(loggers=[]),
        **settings,
    )
    strategy.train(data(model).train_stream)
    return timer


def measure(count: int, options: dict, sizes: Any, backend: str) -> Any:
    """Highest memory, pairs per second, losses and bytes held of a setting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind = multiprocessing.get_context("spawn" if backend == "nccl" else "fork")
    out = kind.Queue()
    options = {**options, "backend": backend}
    workers = [
        kind.Process(target=train, args=(k, count, port, dict(options), sizes, out))
        for k in range(count)
    ]
    for worker in workers:
        worker.start()
    found = out.get(timeout=3600)
    for worker in workers:
        worker.join()
    return found


def main() -> int:
    """Measure all settings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    given = parser.parse_args()
    sizes, found = (given.width, given.layers), {}
    for name, (count, options) in SETTINGS.items():
        found[name] = measure(count, options, sizes, given.backend)
        used, speed, losses, held = found[name]
        first = found["one process"]
        print(
            f"{name:34} holds {held / 2**20:5.0f} MiB, highest {used / 2**20:5.0f} MiB "
            f"({used / first[0]:.2f}x), {speed:6.1f} pairs/s ({speed / first[1]:.2f}x)",
            flush=True,
        )
        if not np.allclose(losses, first[2], atol=NEAR):
            print(f"losses differ: {losses} and {first[2]}")
            return 1
    ratio = found["two processes, FSDP2"][3] / found["two processes, DDP"][3]
    print(f"held with FSDP2 over with DDP: {ratio:.2f} (at most {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
