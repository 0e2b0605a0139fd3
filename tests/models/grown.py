"""Models whose vocabulary has grown, for the tests of tables and their files."""

from types import SimpleNamespace

from avalanche_clip.models import attach_token_embedding
from tests.training.languages import tiny_model

EL = ["κόκκινη γάτα", "μπλε γάτα", "κόκκινο σπίτι"] * 3
DE = ["rote katze", "blauer hund", "kleines haus"] * 3


def experience(number):
    return SimpleNamespace(current_experience=number)


def grown_model(**options):
    """A tiny model with Greek added, and its table."""
    model = tiny_model()
    table = attach_token_embedding(model, **options)
    model.tokenizer.add_language("el", EL, codes=[2], vocab_size=340)
    table.adaptation(experience(0))
    table.usage[5] = 3
    return model, table
