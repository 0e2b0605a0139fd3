"""Cost of the automatic selector (DDAS) with 12 autoencoders.

    python benchmarks/auto_selector_cost.py
    python benchmarks/auto_selector_cost.py --quick
    python benchmarks/auto_selector_cost.py --alexnet alexnet-owt.pth

Times are the best of interleaved runs (other work on the machine only adds) on
ViT-B/16 with random weights. The selection is measured from the model's own
features (its early layers run once more) and from AlexNet's: the autoencoders, in
one fused pass and in 12 separate ones, and the extractor.
Without a weight file AlexNet gets random weights, which take the same time.
Limits: autoencoders, and the whole selection from the model's features, at most 10 % of
the image encoder's time; fused at least as fast as separate passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from avalanche_clip.models import AlexNetFeatures, AutoSelector, create_dual_encoder

COUNT = 12  # 11 tasks and the reference
LIMIT = 0.10


def best_times(
    functions: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Best seconds of each function, run in turns after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: min(values) for name, values in times.items()}


def fill(selector: AutoSelector, size: int) -> None:
    """Give a selector 12 autoencoders with random weights, as a state does."""
    generator = torch.Generator().manual_seed(0)
    state = selector.state_dict()
    h = selector.hidden
    shapes = {
        "encoder_weight": (COUNT, h, size),
        "encoder_bias": (COUNT, h),
        "decoder_weight": (COUNT, size, h),
        "decoder_bias": (COUNT, size),
    }
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator).mul_(0.02)
    state["calibrated"] = torch.full((COUNT - 1,), torch.nan, dtype=torch.float64)
    selector.load_state_dict(state)


def separate(selector: AutoSelector) -> list[nn.Sequential]:
    """The same autoencoders as modules of their own."""
    h, size = selector.encoder_weight.shape[1:]
    found = []
    for i in range(COUNT):
        with torch.device("meta"):
            encoder, decoder = nn.Linear(size, h), nn.Linear(h, size)
        encoder.weight = nn.Parameter(selector.encoder_weight[i])
        encoder.bias = nn.Parameter(selector.encoder_bias[i])
        decoder.weight = nn.Parameter(selector.decoder_weight[i])
        decoder.bias = nn.Parameter(selector.decoder_bias[i])
        found.append(nn.Sequential(encoder, nn.ReLU(), decoder, nn.Sigmoid()))
    return found


def loop_errors(
    modules: list[nn.Sequential], selector: AutoSelector, features: Tensor
) -> Tensor:
    """One pass per autoencoder, from the features each time."""
    errors = []
    for module in modules:
        target = selector.activations(features)
        errors.append(nn.functional.mse_loss(module(target), target, reduction="none"))
        errors[-1] = errors[-1].mean(1)
    return torch.stack(errors, dim=1)


def alexnet_features(path: str | None) -> AlexNetFeatures:
    """AlexNet with the given or with random weights."""
    if path is not None:
        return AlexNetFeatures(path)
    from torchvision.models import alexnet

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "alexnet.pth"
        torch.save(alexnet(weights=None).state_dict(), file)
        return AlexNetFeatures(file)


@torch.no_grad()
def compare(selector: AutoSelector, features: Tensor, rounds: int) -> dict[str, float]:
    """Times of the fused and of the separate passes; their results agree."""
    modules = separate(selector)
    fused, loop = selector.errors_of(features), loop_errors(modules, selector, features)
    torch.testing.assert_close(fused, loop, rtol=1e-5, atol=1e-6)
    return best_times(
        {
            "fused": lambda: selector.errors_of(features),
            "separate": lambda: loop_errors(modules, selector, features),
        },
        rounds,
    )


@torch.no_grad()
def main() -> int:
    """Measure, and tell whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 16, 2 rounds")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alexnet", help="local torchvision weights")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.rounds = 16, 2
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_dual_encoder("ViT-B-16").eval()
    model.freeze()
    images = torch.randn(options.batch, 3, 224, 224)
    own = AutoSelector("model", model)
    fill(own, own.extractor_module.feature_size)
    other = AutoSelector(alexnet_features(options.alexnet))
    fill(other, other.extractor_module.feature_size)

    seconds = best_times(
        {
            "image encoder": lambda: model.encode_image(images),
            "selection": lambda: own.route(images),
            "early layers": lambda: own.features(images),
            "AlexNet features": lambda: other.features(images),
        },
        options.rounds,
    )
    base = seconds["image encoder"]
    reached = True
    print(
        f"ViT-B/16, batch {options.batch}, {options.threads} threads, {COUNT} "
        f"autoencoders: image encoder {1000 * base:.0f} ms"
    )

    def line(name: str, value: float, limit: float | None = LIMIT) -> None:
        nonlocal reached
        share = value / base
        verdict = ""
        if limit is not None:
            reached &= share <= limit
            verdict = f"  target <= {100 * limit:.0f} %"
        print(f"{name:48} {1000 * value:9.1f} ms {100 * share:7.2f} %{verdict}")

    faster = {}
    for name, selector in (("model", own), ("AlexNet", other)):
        features = selector.features(images)
        times = compare(selector, features, 4 * options.rounds)
        line(f"{name} features, 12 autoencoders, fused", times["fused"])
        line(f"{name} features, 12 separate passes", times["separate"], None)
        faster[name] = times["separate"] / times["fused"]
    line("model features, early layers", seconds["early layers"], None)
    line("model features, whole selection", seconds["selection"], LIMIT)
    line("AlexNet extractor (not shared)", seconds["AlexNet features"], None)
    for name, ratio in faster.items():
        reached &= ratio >= 1
        print(f"{name} features: fused {ratio:.2f} times as fast  target >= 1")
    print(f"targets {'reached' if reached else 'NOT reached'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
