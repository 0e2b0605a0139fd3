"""Parameter-efficient branches beside the blocks of a tower."""
