"""Cost of CoLeCLIP's image pass against that of the plain image tower.

    python benchmarks/coleclip_cost.py
    python benchmarks/coleclip_cost.py --batch 8 --rounds 5
    python benchmarks/coleclip_cost.py --quick      # the limits only

ViT-B/16 with random weights (197 tokens) and the prompts of 11 tasks: multiply-adds
and time of a pass without gradients, whose limits are 1.06 and 1.15 times those of the
plain tower; and of a training pass, forward and backward, for which the plain tower is
run forward only, as it is frozen. The reference does what the authors' code does,
written anew: prompts and image tokens are one sequence, under a mask that each layer
makes again. All forms run in turns on the same images; times are CPU seconds of the
process, medians of the rounds, ratios medians of those of one round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.models import attach_prompts, create_dual_encoder
from avalanche_clip.models.encoders.macs import count_macs
from avalanche_clip.models.peft.prompt import prompt_mask

TASKS = 11
MOST_MACS = 1.06
MOST_TIME = 1.15


def reference_pass(model: Any, prompts: list[Tensor], images: Tensor) -> Tensor:
    """Features of all prompts and then the class token, in the authors' form."""
    with model.prompts.using_ids(-1):
        return _joined_pass(model.clip.visual, prompts, images)


def _joined_pass(visual: Any, prompts: list[Tensor], images: Tensor) -> Tensor:
    x = visual._embeds(images)
    own = visual.ln_pre(torch.cat(prompts)).expand(len(x), -1, -1)
    x, count = torch.cat([own, x], 1), len(prompts)
    for block in visual.transformer.resblocks:
        mask = prompt_mask([1] * count, x.shape[1] - count).to(x.device)
        x = block(x, attn_mask=mask)
    return visual.ln_post(x[:, : count + 1]) @ visual.proj


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run in each round, which other processes hardly change."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        # Back and forth, so that none always runs behind the same one.
        for name in list(runs)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, plain: str) -> float:
    """Median over the rounds of how much longer a run takes than another."""
    pairs = zip(times[name], times[plain], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def main() -> int:
    """Measure, print, and tell whether the limits are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_dual_encoder("ViT-B-16").requires_grad_(False).eval()
    images = torch.randn(options.batch, 3, 224, 224)
    plain_macs = model.macs()["image"]
    prompts: Any = attach_prompts(model, "image", kind="tokens")
    for _ in range(TASKS - 1):
        prompts.add()
    prompts.train_ids([TASKS - 1])
    prompts.set_ids(TASKS - 1)
    tokens = [own.tokens.detach() for own in prompts.branches()[0].table.values()]
    passes = {
        "ours": lambda: prompts.encode_image(images[:1]),
        "reference": lambda: reference_pass(model, tokens, images[:1]),
    }
    macs = {k: v / plain_macs for k, v in count_macs(model, passes).items()}

    def plain() -> None:
        with torch.no_grad(), prompts.using_ids(-1):
            model.encode_image(images)

    def ours() -> None:
        with torch.no_grad():
            prompts.encode_image(images)

    def reference() -> None:
        with torch.no_grad():
            reference_pass(model, tokens, images)

    def trained() -> None:
        prompts.encode_image(images)[1].square().sum().backward()

    def reference_trained() -> None:
        own = [*tokens[:-1], tokens[-1].clone().requires_grad_()]
        reference_pass(model, own, images).square().sum().backward()

    with torch.no_grad():
        _, read, _ = prompts.encode_image(images[:2])
        theirs = reference_pass(model, tokens, images[:2])[:, :TASKS]
    torch.testing.assert_close(read, theirs, rtol=0, atol=1e-4)
    runs = {"plain": plain, "ours": ours}
    if not options.quick:
        runs |= {"ours, trained": trained, "reference": reference}
        runs |= {"reference, trained": reference_trained}
    times = in_turns(runs, options.rounds)
    print(
        f"ViT-B/16, batch {options.batch}, {TASKS} prompts, {options.threads} threads"
    )
    print(f"plain tower: {plain_macs / 1e9:.2f} GMACs per image")
    for name, seconds in times.items():
        cost = f", {macs[name]:.3f} x the MACs" if name in macs else ""
        print(
            f"{name:20} {statistics.median(seconds):8.3f} s, "
            f"{ratio(times, name, 'plain'):.3f} x the time{cost}"
        )
    kept = macs["ours"] <= MOST_MACS and ratio(times, "ours", "plain") <= MOST_TIME
    print("within the limits" if kept else "NOT within the limits")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
