"""Named strategies: a template plus plugins with the paper's defaults."""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
