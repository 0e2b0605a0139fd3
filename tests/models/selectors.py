"""A toy extractor and domains for the tests of the selector."""

import io

import torch
from torch import nn
from torchvision.models import alexnet

from avalanche_clip.models import AutoSelector, SelectorFeatures, SelectorTraining

SHORT = SelectorTraining(reference_iterations=40, task_iterations=30, batch_size=8)


class Pixels(SelectorFeatures):
    """Flattened 4 x 4 images; counts how many it saw."""

    name = "pixels"

    def __init__(self, standardize=False, scale=1.0):
        super().__init__()
        self.standardize = standardize
        self.feature_size = 48
        self.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.flatten(1) * self.scale

    def probe(self):
        return torch.linspace(-1, 1, 48) * self.scale


def domain(number, count=24):
    """Images around a domain's own centre, at a distance from all others."""
    generator = torch.Generator().manual_seed(number)
    centre = 2 * torch.randn(1, 3, 4, 4, generator=generator)
    return centre + 0.3 * torch.randn(count, 3, 4, 4, generator=generator)


def learned(tasks=3, **options):
    options = {"training": SHORT, "hidden": 5, **options}
    selector = AutoSelector(options.pop("extractor", None) or Pixels(), **options)
    selector.fit_reference(domain(100, 64))
    for task in range(tasks):
        assert selector.fit_task(domain(task)) == task
    return selector


def slow_errors(selector, images):
    """One autoencoder after the other, row by row, in float64."""
    features = selector.features(images).double()
    mean, std = selector.feature_mean.double(), selector.feature_std.double()
    rows = []
    for row in features:
        a = torch.sigmoid((row - mean) / std)
        found = []
        for i in range(selector.num_autoencoders):
            w, b = selector.encoder_weight[i].double(), selector.encoder_bias[i]
            v, c = selector.decoder_weight[i].double(), selector.decoder_bias[i]
            out = torch.sigmoid(v @ torch.relu(w @ a + b.double()) + c.double())
            found.append(sum((o - t) ** 2 for o, t in zip(out, a)) / len(a))
        rows.append(torch.stack(found))
    return torch.stack(rows)


def write_alexnet(folder):
    """Random weights under torchvision's names; the classifier is never read."""
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = alexnet(weights=None).state_dict()
    state = {
        key: 0.04 * torch.randn(value.shape, generator=generator)
        if key.startswith("features.")
        else torch.zeros(1)
        for key, value in shapes.items()
    }
    path = folder / "alexnet.pth"
    torch.save(state, path)
    return path


def through_file(state):
    """Save and load a state without unpickling code."""
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=True)
