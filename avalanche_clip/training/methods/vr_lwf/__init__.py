"""Learning without forgetting with replayed vocabulary (VR-LwF)."""
