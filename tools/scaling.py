"""What TiC-DataComp costs: the tables of docs/scaling.rst.

    python tools/scaling.py tables > docs/scaling_tables.inc
    python tools/scaling.py measure                   # minutes of one core
    python tools/scaling.py tables --tflops 400 --kilobytes 20

``tables`` predicts: multiply-adds by the package's own counter, activations by what
autograd keeps of a batch of two pairs in bfloat16, the rest by arithmetic. Two numbers
are assumptions and arguments: the rate that a GPU sustains, and the size of a pair on
disk, by default that of DataComp's own table (450 GB for 12.8 million pairs).

``measure`` compares predictions with what a CPU takes: work and memory of a training
step of ViT-B/16, and bytes that two processes send.
"""

from __future__ import annotations

import argparse
import math
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

SCALES = {"M": "datacomp-medium", "L": "datacomp-large", "XL": "datacomp-xlarge"}
STEPS, DIMENSION = 7, 512
KILOBYTES = 450e9 / 12.8e6 / 1e3
TFLOPS = 100.0
MILLISECONDS = 6.0  # of a core per pair: docs/archives.rst
GPUS = (8, 32, 128)
CONTEXT = torch.multiprocessing.get_context("spawn")
METHODS: dict[str, tuple[float, float]] = {
    # forward passes beside the three of training, and copies of the weights on the GPU
    "sequential": (0.0, 0),
    "patching": (0.0, 0),
    "cumulative-exp": (0.0, 0),
    "cumulative-equal": (0.0, 0),
    "cumulative-all": (0.0, 0),
    "lwf": (1.0, 1),
    "ewc": (0.0, 2),
    "restart": (0.0, 0),
    "cumulative-all-star": (0.0, 0),
    "oracle": (0.0, 0),
}


# ------------------------------------------------------------------------ what is kept
@contextmanager
def kept_bytes(model: nn.Module | None) -> Iterator[list[int]]:
    """Count the bytes that autograd keeps, each tensor once, parameters left out."""
    known = {p.untyped_storage()._cdata for p in (model.parameters() if model else ())}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def batch_of(model: Any, size: int) -> tuple[Tensor, Tensor]:
    """Pictures and full-length texts of a size that the model takes."""
    height, width = _size(model)
    images = torch.randn(size, 3, height, width)
    texts = torch.randint(1, 1000, (size, model.context_length))
    texts[:, -1] = model.tokenizer.eot_id
    return images, texts


def _size(model: Any) -> tuple[int, int]:
    size = model.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def activations(model: Any, checkpointed: bool) -> float:
    """Bytes per pair that a forward pass in bfloat16 keeps for the backward pass."""
    model.set_grad_checkpointing(checkpointed)
    found = []
    for size in (1, 2):
        images, texts = batch_of(model, size)
        with kept_bytes(model) as total, torch.autocast("cpu", torch.bfloat16):
            kept = model.encode_image(images), model.encode_text(texts)
        del kept
        found.append(total[0])
    model.set_grad_checkpointing(False)
    return float(found[1] - found[0])


def loss_matrices(size: int = 256, processes: int = 4) -> float:
    """How many float32 matrices of its pairs by all pairs a process keeps or makes."""
    from avalanche_clip.losses import contrastive_loss

    rows = [torch.randn(size, 8, requires_grad=True) for _ in range(2)]
    images, texts = (nn.functional.normalize(r, dim=-1) for r in rows)
    with kept_bytes(None) as total:
        own = slice(0, size // processes)
        kept = contrastive_loss(images, texts, torch.tensor(10.0), rows=own)
    del kept
    return total[0] * processes / (4 * size**2) + 1  # and one for the gradient


@dataclass(frozen=True)
class Facts:
    """What is known of ViT-B/16."""

    image_macs: float
    text_macs: float
    parameters: int
    plain: float
    checkpointed: float
    matrices: float

    @property
    def macs(self) -> float:
        """Multiply-adds of one pair, forward."""
        return self.image_macs + self.text_macs


@cache
def facts(name: str = "ViT-B-16") -> Facts:
    """Count on a model of random weights."""
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.models.encoders.macs import count_passes

    model = create_dual_encoder(name)
    macs = count_passes(model, _size(model), model.context_length)
    return Facts(
        macs["image"],
        macs["text"],
        sum(p.numel() for p in model.parameters()),
        activations(model, False),
        activations(model, True),
        loss_matrices(),
    )


# ---------------------------------------------------------------------------- predicted
def step_flops(batch: int, macs: float, extra: float, processes: int) -> float:
    """Operations of an optimiser step: towers, and the shares of the loss."""
    return 2 * (3 + extra) * macs * batch + loss_flops(batch, processes)


def loss_flops(batch: int, processes: int) -> float:
    """Operations of the loss: several processes make both directions, one but one."""
    return 6 * batch**2 * DIMENSION * (1 if processes == 1 else 2)


def gpu_memory(
    facts: Facts, batch: int, gpus: int, per_pair: float, copies: float
) -> Any:
    """Gigabytes on a GPU: weights and AdamW, activations, and the loss."""
    weights = facts.parameters * 4 * (4 + copies)  # weight, gradient, two moments
    pairs = math.ceil(batch / gpus)
    features = 4 * batch * DIMENSION * 4  # both towers, and their gradients
    loss = facts.matrices * 4 * batch * pairs + features
    return [part / 1e9 for part in (weights, pairs * per_pair, loss)]


def network(parameters: int, batch: int, gpus: int, dimension: int = DIMENSION) -> Any:
    """Bytes that a GPU sends per step: gradients, and features both ways (a ring)."""
    part = (gpus - 1) / gpus
    rows = 4 * 2 * batch * dimension
    return 2 * part * 4 * parameters, part * rows + 2 * part * rows


def rst(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of reStructuredText."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"   {'*' if k == 0 else ' '} - {cell}" for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def tables(tflops: float, kilobytes: float) -> str:
    """All tables of the page."""
    from avalanche_clip.training.supervised import TIC_PRESETS

    known = facts()
    presets = {scale: TIC_PRESETS[name] for scale, name in SCALES.items()}
    assert all(p.model == "ViT-B-16" for p in presets.values())
    out = [".. made by tools/scaling.py tables\n"]
    rows = [
        ["multiply-adds per image, per text", f"{known.image_macs:.4g}, "
         f"{known.text_macs:.4g}"],
        ["parameters", f"{known.parameters / 1e6:.1f} million"],
        ["weights, gradients, AdamW", f"{known.parameters * 16 / 1e9:.2f} GB"],
        ["activations per pair (bfloat16)", f"{known.plain / 1e6:.0f} MB"],
        ["with ``--grad-checkpointing``", f"{known.checkpointed / 1e6:.1f} MB"],
        ["matrices of own pairs x all pairs in the loss", f"{known.matrices:.1f}"],
    ]  # fmt: skip
    out.append(rst("ViT-B/16", ["what", "counted"], rows))
    rows = []
    for method, (extra, copies) in METHODS.items():
        for scale, preset in presets.items():
            factors = preset.factors(method)
            real = preset.iterations * sum(
                _factor(method, f) * step_flops(preset.batch_size, known.macs, extra, 1)
                for f in factors
            )
            pairs = (
                preset.iterations
                * preset.batch_size
                * sum(_factor(method, f) for f in factors)
            )
            if scale == "M":
                rows.append([f"``{method}``", f"{sum(factors):g}", f"{copies:g}"])
            hours = real / (tflops * 1e12) / 3600
            rows[-1].append(
                f"{preset.macs(method):.2g} / {real:.2g} / {hours:,.0f} / "
                f"{pairs * kilobytes / 1e9:,.0f}"
            )
    head = ["method", "budgets", "copies", *SCALES]
    title = (
        "Cost of seven steps: nominal multiply-adds / operations of the towers and the "
        f"loss / GPU hours at {tflops:g} TFLOP/s / terabytes read"
    )
    out.append(rst(title, head, rows))
    rows = []
    for scale, preset in presets.items():
        for gpus in GPUS:
            batch, flops = preset.batch_size, 0.0
            flops = step_flops(batch, known.macs, 0, gpus) / gpus
            share = loss_flops(batch, gpus) / gpus / flops
            seconds = flops / (tflops * 1e12)
            plain = gpu_memory(known, batch, gpus, known.plain, 0)
            saved = gpu_memory(known, batch, gpus, known.checkpointed, 0)
            gradients, features = network(known.parameters, batch, gpus)
            rows.append([
                scale, f"{gpus}", f"{math.ceil(batch / gpus):,}", f"{seconds:.2f}",
                f"{100 * share:.0f} %",
                f"{plain[0]:.1f} + {plain[1]:,.0f} ({saved[1]:,.0f}) + {plain[2]:,.1f}",
                f"{batch * kilobytes / gpus / seconds / 1e3:,.0f}",
                f"{batch / gpus / seconds * MILLISECONDS / 1e3:.1f}",
                f"{gradients / 1e9:.2f} + {features / 1e9:.2f}",
                f"{(gradients + features) / seconds / 1e9:.1f}",
                f"{STEPS * preset.iterations * seconds / 3600:,.1f}",
            ])  # fmt: skip
    head = [
        "scale", "GPUs", "pairs each", "s per step", "loss", "GB per GPU", "MB/s read",
        "cores", "GB sent", "GB/s", "hours",
    ]  # fmt: skip
    title = f"One optimiser step of Sequential per GPU, at {tflops:g} TFLOP/s"
    out.append(rst(title, head, rows))
    return "\n".join(out)


def _factor(method: str, factor: float) -> float:
    """Steps of a method in plain budgets: LwF and EWC book more than they step."""
    return 1.0 if method in ("lwf", "ewc") else factor


# ----------------------------------------------------------------------------- measured
def work(call: Callable[[], Any], repeats: int = 3) -> float:
    """Least processor seconds of a call, after one to warm up."""
    call()
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def matmul_rate() -> float:
    """Operations per second of one core at products of the size of ViT-B's."""
    x, w = torch.randn(788, 768), torch.randn(768, 3072)
    return 2 * 788 * 768 * 3072 / work(lambda: [x @ w for _ in range(8)]) * 8


def peak() -> float:
    """Largest resident bytes so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_step(name: str, sizes: Sequence[int]) -> None:
    """Print work and memory of training steps on one core, in float32."""
    from avalanche_clip.losses import contrastive_loss
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.models.encoders.macs import count_passes

    before = peak()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = create_dual_encoder(name)
    macs = sum(count_passes(model, _size(model), model.context_length).values())
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(size: int, keep: list[int] | None = None) -> None:
        images, texts = batch_of(model, size)
        with kept_bytes(model) as total:
            found = model.encode_image(images), model.encode_text(texts)
            loss = contrastive_loss(*found, model.logit_scale.exp())
        if keep is not None:
            keep.append(total[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for size in sizes:
        kept: list[int] = []
        step(size, kept)
        rate = matmul_rate()
        seconds = work(lambda size=size: step(size), 2)
        wanted = 6 * macs * size / rate
        print(
            f"{name}, {size} pairs: {seconds:.2f} s of one core; {wanted:.2f} s by "
            f"{6 * macs * size:.3g} operations at {rate / 1e9:.0f} GFLOP/s (ratio "
            f"{seconds / wanted:.2f}); peak {(peak() - before) / 1e6:,.0f} MB over the "
            f"libraries, {(parameters * 16 + kept[0]) / 1e6:,.0f} MB by weights, AdamW "
            f"and the {kept[0] / 1e6:,.0f} MB kept"
        )


def _sent() -> int:
    """Bytes that went over the loopback device of this network namespace."""
    with open("/proc/net/dev") as file:
        row = next(line for line in file if line.strip().startswith("lo:"))
    return int(row.split(":")[1].split()[8])


def _pair_of(rank: int, port: int, steps: int, queue: Any) -> None:
    """One of two processes that train a tiny model by DDP on gathered features."""
    import torch.distributed as dist

    from avalanche_clip import distributed
    from avalanche_clip.losses import contrastive_loss
    from avalanche_clip.models import create_dual_encoder

    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", place, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = create_dual_encoder("tiny-emoji-vit")
    synced = nn.parallel.DistributedDataParallel(distributed.SyncedModel(model))
    images, texts = batch_of(model, 32)
    from avalanche_clip.benchmarks.items.batch import ImageTextBatch

    batch = ImageTextBatch(image=images, text=texts)
    counts = []
    for number in range(steps + 2):
        dist.barrier()
        if number == 2:
            counts.append((_sent(), time.process_time()))
        whole = distributed.gather_output(synced(batch), [32, 32])
        own = contrastive_loss(*whole[:3], rows=distributed.own_rows([32, 32]))
        distributed.sum_of_shares(own).backward()
    dist.barrier()
    counts.append((_sent(), time.process_time()))
    if rank == 0:
        parameters = sum(p.numel() for p in model.parameters())
        queue.put((counts, parameters, model.embed_dim))
    dist.barrier()


def measure_network(steps: int = 20) -> None:
    """Print bytes per step that two processes send, against the prediction."""
    queue = CONTEXT.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = [
        CONTEXT.Process(target=_pair_of, args=(rank, port, steps, queue))
        for rank in range(2)
    ]
    for part in parts:
        part.start()
    counts, parameters, dimension = queue.get()
    for part in parts:
        part.join()
    (first, begin), (last, end) = counts
    each = (last - first) / steps / 2
    gradients, features = network(parameters, 64, 2, dimension)
    print(
        f"two processes, tiny-emoji-vit, 32 pairs each: {each / 1e6:.2f} MB sent by "
        f"each per step; predicted {(gradients + features) / 1e6:.2f} MB (gradients "
        f"{gradients / 1e6:.2f}, features {features / 1e6:.2f}); "
        f"{1000 * (end - begin) / steps:.0f} ms of work per step and process"
    )


def measure_loss(pairs: int = 4096, processes: int = 16) -> None:
    """Print work and memory of the loss of one of many processes, and of the whole."""
    from avalanche_clip.losses import contrastive_loss

    torch.set_num_threads(1)
    shape = (pairs, DIMENSION)
    rows = [nn.functional.normalize(torch.randn(shape), dim=-1) for _ in range(2)]
    images, texts = (r.requires_grad_() for r in rows)

    def loss(own: slice | None) -> Tensor:
        return contrastive_loss(images, texts, torch.tensor(10.0), rows=own)

    found = []
    for own in (None, slice(0, pairs // processes)):
        with kept_bytes(None) as total:
            kept = loss(own)
        del kept
        found.append((work(lambda own=own: loss(own).backward()), total[0]))  # type: ignore[misc]
    print(
        f"the loss of {pairs} pairs on one of {processes} processes, by its own rows / "
        f"whole: {found[1][0]:.2f} / {found[0][0]:.2f} s of one core, kept "
        f"{found[1][1] / 1e6:.0f} / {found[0][1] / 1e6:.0f} MB"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables, or measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("tables", "measure", "network"))
    parser.add_argument(
        "--tflops", type=float, default=TFLOPS, help="per GPU, sustained"
    )
    parser.add_argument("--kilobytes", type=float, default=KILOBYTES, help="per pair")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.what == "tables":
        print(tables(given.tflops, given.kilobytes))
        return
    if given.what == "measure":
        for task in (("ViT-B-16", (2, 4)), ("tiny-emoji-vit", (32, 128))):
            part = CONTEXT.Process(target=measure_step, args=task)
            part.start()  # whose peak of memory is its own
            part.join()
        measure_loss()
    measure_network()


if __name__ == "__main__":
    sys.exit(main())
