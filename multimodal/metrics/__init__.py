"""Metrics, as plain functions and as torchmetrics classes that are right on any number of ranks."""

from multimodal.metrics.families import by_family, majority_guess, question_only_guess
from multimodal.metrics.retrieval import RetrievalRecall, recall, retrieval_recall, role_swap_accuracy, ties
from multimodal.metrics.vqa import VqaAccuracy, normalize_answer, soft_scores, vqa_score

__all__ = [
    "RetrievalRecall",
    "VqaAccuracy",
    "by_family",
    "majority_guess",
    "normalize_answer",
    "question_only_guess",
    "recall",
    "retrieval_recall",
    "role_swap_accuracy",
    "soft_scores",
    "ties",
    "vqa_score",
]
