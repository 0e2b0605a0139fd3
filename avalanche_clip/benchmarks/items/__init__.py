"""What a benchmark is made of."""
