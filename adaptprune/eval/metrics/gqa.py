"""GQA (arXiv 1902.09506): the answer equals the reference, after LLaVA's trimming of case and full stops at the end."""

from __future__ import annotations


def prediction(answer: str) -> str:
    """What GQA's own evaluation is handed."""
    return answer.rstrip(".").lower()


def accuracy(answer: str, reference: str) -> float:
    return float(prediction(answer) == reference)
