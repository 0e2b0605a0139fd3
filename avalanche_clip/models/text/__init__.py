"""Captions to token ids: tokenizers, vocabularies that grow, token tables."""
