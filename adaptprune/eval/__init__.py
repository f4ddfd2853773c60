"""Measuring answers: tasks, a runner that can be killed and run again, and reports with intervals."""
