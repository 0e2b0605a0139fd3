"""Models that grow by a row of a table in each experience."""

import torch
from torch import nn

from tests.helpers import StubDualEncoder


class Growing(nn.Module):
    """Adds a row per training experience to a table used by the image tower."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(1, 8))
        self.grown = 0

    def adaptation(self, experience):
        self.resize(len(self.rows) + 1)
        self.grown += 1

    def resize(self, count):
        old = self.rows.detach()
        fresh = torch.zeros(count, 8)
        fresh[: len(old)] = old[:count]
        self.rows = nn.Parameter(fresh)

    def growth_state(self):
        return {"rows": len(self.rows)}

    def load_growth_state(self, state):
        self.resize(state["rows"])


class GrowingEncoder(StubDualEncoder):
    def __init__(self, seed=0, **options):
        super().__init__(seed, **options)
        self.table = Growing()

    def _raw_image(self, image):
        weights = torch.arange(1.0, len(self.table.rows) + 1)
        return super()._raw_image(image) + weights @ self.table.rows


class PlainGrowing(nn.Module):
    """Grows by ``adaptation`` alone, as the design asks for."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(1, 8))

    def adaptation(self, experience):
        fresh = torch.full((len(self.rows) + 1, 8), 0.01)
        fresh[:-1] = self.rows.detach()
        self.rows = nn.Parameter(fresh)
