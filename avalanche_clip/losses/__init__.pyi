# Written by tools/write_faces.py from avalanche_clip/_exports.py.
from avalanche_clip.losses.contrastive import (
    contrastive_loss as contrastive_loss,
)
from avalanche_clip.losses.cross_lingual import (
    cross_lingual_loss as cross_lingual_loss,
    cross_modal_loss as cross_modal_loss,
)
from avalanche_clip.losses.off_diagonal_alignment import (
    off_diagonal_alignment_loss as off_diagonal_alignment_loss,
)
from avalanche_clip.losses.siglip import (
    siglip_loss as siglip_loss,
)
from avalanche_clip.losses.similarity_distillation import (
    similarity_distillation_loss as similarity_distillation_loss,
)
from avalanche_clip.losses.temperature_distillation import (
    temperature_distillation_loss as temperature_distillation_loss,
)
