"""From turns with pictures to a model's inputs, for every family, and nowhere else."""

from adaptprune.prompts.prompter import WORKERS, Prompter, PromptError, Turn

__all__ = ["WORKERS", "PromptError", "Prompter", "Turn"]
