"""One file or folder per paper: plugin and strategy together."""
