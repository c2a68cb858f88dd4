"""Training objectives: pure functions of tensors, no parameters of their own."""

from multimodal.objectives.answers import answer_loss
from multimodal.objectives.contrastive import gather_with_grad, info_nce
from multimodal.objectives.matching import draw_negatives, matching_loss

__all__ = ["answer_loss", "draw_negatives", "gather_with_grad", "info_nce", "matching_loss"]
