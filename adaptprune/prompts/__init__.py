"""From turns with pictures to a model's inputs and back to text, for every family, and nowhere else."""

from adaptprune.prompts.prompter import WORKERS, Prompter
from adaptprune.prompts.turns import PromptError, Turn, images_of, question

__all__ = ["WORKERS", "PromptError", "Prompter", "Turn", "images_of", "question"]
