"""From pictures to tensors."""
