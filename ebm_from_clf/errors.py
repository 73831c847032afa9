"""The two ways a job ends early, told apart by the exit status of the command line."""

__all__ = ["Diverged", "UsageError"]


class UsageError(ValueError):
    """The input cannot be used; the message is one line and says what to do."""


class Diverged(RuntimeError):
    """Fine-tuning or a chain left the region where its numbers mean anything."""
