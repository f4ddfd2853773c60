"""A language model as judge: LLaVA's pairwise review and MM-Vet's grading, and their summaries.

``review_pairs`` and ``review_mm_vet`` ask a `Judge` and write a line per review; ``summarize`` reads such files, and
those that LLaVA's own scripts write. A review that failed is recorded as failed and never becomes a score.
"""

from adaptprune.review.judge import Judge
from adaptprune.review.mm_vet import review_mm_vet
from adaptprune.review.pairwise import review_pairs
from adaptprune.review.run import Outcome
from adaptprune.review.summary import Summary, summarize

__all__ = ["Judge", "Outcome", "Summary", "review_mm_vet", "review_pairs", "summarize"]
