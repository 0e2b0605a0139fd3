"""From captions to token ids, and vocabularies that grow."""
