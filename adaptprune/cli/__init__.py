"""The command line: one file per command, no logic. Heavy imports happen inside the commands."""

from adaptprune.cli.app import main

__all__ = ["main"]
