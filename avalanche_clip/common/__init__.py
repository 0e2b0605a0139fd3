"""Small mechanisms that know nothing of images, texts or training."""
