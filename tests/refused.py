"""The short form of a test that something is refused."""

import pytest


def refused(words, call, *arguments, error=ValueError, **options):
    """Check that a call raises an error whose message has some words; return it."""
    with pytest.raises(error, match=words) as info:
        call(*arguments, **options)
    return str(info.value)
