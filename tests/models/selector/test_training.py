"""How the selector's autoencoders are trained, and on which images."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from avalanche_clip.models import AutoSelector, SelectorTraining
from avalanche_clip.models.selector.training import FeatureStream, images_of
from tests.models.selectors import SHORT, Pixels, domain, learned
from tests.refused import refused


def test_training__own_domain_has_the_lowest_error():
    selector = learned(4)
    for task in range(4):
        images = domain(task, 10)
        assert selector.errors(images).argmin(1).eq(task + 1).all()
        assert selector.route(images).eq(task).all()
    assert selector.route(domain(100, 8)).eq(-1).all()
    constant = torch.full((16, 3, 4, 4), 1.7)
    task = selector.fit_task(constant)
    assert selector.errors(constant)[0].argmin() == task + 1


def test_training__earlier_autoencoders_stay_as_they_are():
    selector = learned(2)
    before = {k: v.clone() for k, v in selector.named_buffers()}
    errors = selector.errors(domain(1, 4))
    selector.fit_task(domain(5))
    for name, old in before.items():
        new = getattr(selector, name)
        new = new[: len(old)]
        assert torch.equal(new.nan_to_num(-1), old.nan_to_num(-1)), name
    torch.testing.assert_close(selector.errors(domain(1, 4))[:, :3], errors)


def test_training__equals_adam_on_modules():
    """Index 0 by hand: same initial weights, order, rate and decay."""
    plan = SelectorTraining(
        reference_iterations=25, batch_size=8, decay_epochs=2, weight_decay=1e-2
    )
    images = domain(3, 20)  # 3 batches per epoch: 8, 8, 4
    selector = AutoSelector(Pixels(), hidden=5, training=plan, seed=4)
    selector.fit_reference(images)
    seed = int(np.random.SeedSequence([4, 0]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 48), nn.Sigmoid())
    for module in (net[0], net[2]):
        bound = module.in_features**-0.5
        module.weight.data.uniform_(-bound, bound, generator=generator)
        module.bias.data.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-2)
    rows = torch.sigmoid(images.flatten(1))
    rows = rows[torch.randperm(20, generator=generator)]
    for i in range(25):
        if i and i % 3 == 0:
            order = torch.randperm(20, generator=generator)
        part = slice(8 * (i % 3), 8 * (i % 3) + 8)
        batch = rows[part] if i < 3 else rows[order[part]]
        optimizer.param_groups[0]["lr"] = 0.01 * 0.1 ** ((i // 3) // 2)
        optimizer.zero_grad()
        (net(batch) - batch).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(selector.encoder_weight[0], net[0].weight.data)
    torch.testing.assert_close(selector.decoder_bias[0], net[2].bias.data)


def test_training__leaves_global_generators_alone_and_repeats():
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(domain(0), torch.zeros(24)), 8, shuffle=True)

    def states():
        return torch.get_rng_state(), np.random.get_state()[1], random.getstate()

    before = states()
    first = AutoSelector(Pixels(), hidden=5, training=SHORT)
    first.fit_reference(loader)
    first.fit_task(loader)
    after = states()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    torch.manual_seed(77)
    second = AutoSelector(Pixels(), hidden=5, training=SHORT)
    second.fit_reference(loader)
    assert torch.equal(second.encoder_weight[0], first.encoder_weight[0])
    other = AutoSelector(Pixels(), hidden=5, training=SHORT, seed=1)
    other.fit_reference(loader)
    assert not torch.equal(other.encoder_weight[0], first.encoder_weight[0])


def test_training__works_without_gradients_and_in_inference_mode():
    plain = learned(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(learned(1).encoder_weight, plain.encoder_weight)
    with torch.inference_mode():
        inferred = learned(1)
    assert torch.equal(inferred.encoder_weight, plain.encoder_weight)


def test_loader__features_are_computed_once_if_deterministic():
    data = TensorDataset(domain(0))
    loader = DataLoader(data, 7)
    selector = AutoSelector(Pixels(), hidden=5, training=SHORT)
    selector.fit_reference(loader, deterministic=True)
    assert selector.extractor_module.seen == 24
    selector.fit_task(loader)  # 30 batches of 8 of 24 images
    assert selector.extractor_module.seen == pytest.approx(24 + 240, abs=8)
    small = SelectorTraining(task_iterations=9, batch_size=8, cache_bytes=2000)
    selector.training_plan = small
    seen = selector.extractor_module.seen
    selector.fit_task(loader, deterministic=True)  # 24 x 48 x 4 bytes do not fit
    assert selector.extractor_module.seen == pytest.approx(seen + 72, abs=8)


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_stream__batches_and_epochs_do_not_depend_on_the_loader(size):
    loader = DataLoader(TensorDataset(domain(0, 20)), size)
    stream = FeatureStream(
        lambda x: x.flatten(1), loader, True, SHORT, torch.Generator().manual_seed(0)
    )
    found = [b for _, b in zip(range(7), stream.batches())]
    assert [len(rows) for _, rows in found] == [8, 8, 4, 8, 8, 4, 8]
    assert [epoch for epoch, _ in found] == [0, 0, 0, 1, 1, 1, 2]
    second = torch.cat([rows for epoch, rows in found if epoch == 1])
    everything = domain(0, 20).flatten(1)
    assert torch.equal(second.sort(0).values, everything.sort(0).values)


def test_batches__of_every_form_are_read():
    x = torch.zeros(2, 3, 4, 4)
    for batch in (x, [x, 1], ({"image": x}, 1), {"image": x, "text": 0}):
        assert images_of(batch) is x
    for wrong in ({"pixels": x}, [], "x"):
        refused("holds no images", images_of, wrong)
    refused("uint8", images_of, x.to(torch.uint8))


def test_standardisation__comes_from_the_reference():
    selector = AutoSelector(Pixels(True), hidden=5, training=SHORT)
    images = domain(0, 30)
    images[:, 0, 0, 0] = 3.0  # does not vary
    selector.fit_reference(images)
    rows = images.flatten(1)
    std = rows.std(0, unbiased=False)
    std[0] = 1.0
    torch.testing.assert_close(selector.feature_mean, rows.mean(0))
    torch.testing.assert_close(selector.feature_std, std)
    mean = selector.feature_mean.clone()
    selector.fit_task(domain(1))
    assert torch.equal(selector.feature_mean, mean)


def test_errors_of_use__are_explained(tmp_path):
    refused("extractor='resnet'", AutoSelector, "resnet")
    refused("granularity='image'", AutoSelector, granularity="image")
    refused("local state dictionary", AutoSelector, "alexnet")
    refused("threshold=-1", AutoSelector, threshold=-1)
    refused("bind", AutoSelector().fit_reference, domain(0), error=RuntimeError)
    selector = AutoSelector(Pixels(), training=SHORT)
    refused("fit_reference before", selector.fit_task, domain(0))
    refused("no autoencoder", selector.errors, domain(0))
    refused("no images", selector.fit_reference, domain(0)[:0])
    refused("only once", selector.fit_reference, iter([domain(0)]), error=TypeError)
    selector.fit_reference(domain(0))
    refused("exists already", selector.fit_reference, domain(0))
    refused("learned are", selector.calibrate, {0: domain(0)})
