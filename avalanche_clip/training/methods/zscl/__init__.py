"""Zero-shot continual learning (ZSCL)."""
