"""What every part of the package needs; imports nothing of the others."""
