"""Batches, weights and training steps for tests of expert adapters."""

import torch

TEXTS = ["red dog", "blue", "green cat bird sun"]
OPTIONS = {"num_experts": 4, "top_k": 2, "bottleneck": 6}


def make_batch(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    size = model.image_size
    image = torch.randn(3, 3, size, size, generator=generator)
    return {"image": image, "text": model.tokenizer(TEXTS)}


def features(model, batch):
    with torch.no_grad():
        out = model(batch)
    return torch.cat([out.image_features, out.text_features])


def randomise(branches, seed=1, std=0.3):
    """Give branches weights that make routing and outputs differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for branch in branches.branches():
            for parameter in branch.parameters():
                parameter.normal_(0, std)


def train(model, steps=4, lr=0.01, **options):
    """A few steps on the pairs of a batch; returns the optimiser."""
    trainable = [p for _, p in model.moe_adapters.trainable_parameters()]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.1, **options)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        out = model(make_batch(model, seed=step))
        scores = 10 * out.image_features @ out.text_features.T
        torch.nn.functional.cross_entropy(scores, torch.arange(3)).backward()
        optimizer.step()
    model.eval()
    return optimizer
