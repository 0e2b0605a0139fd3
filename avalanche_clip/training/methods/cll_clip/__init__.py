"""Growing vocabularies over languages (CLL-CLIP)."""
