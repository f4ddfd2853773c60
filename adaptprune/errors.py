"""The one exception that means "the request cannot be carried out as asked": its message says what to do instead."""


class AdaptPruneError(ValueError):
    """A mistake in what was asked for: the message names the value, what is allowed and the next step.

    The command line prints it as one line and exits with code 2; other exceptions are defects and keep their traceback.
    """


class CannotReselect(AdaptPruneError):
    """Visual tokens of earlier turns cannot be chosen anew over a kept cache of this model: read it anew instead."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def reason(error: BaseException) -> str:
    """Why something failed, in one line: a message of ours as it is, anything else with its type in front."""
    if isinstance(error, AdaptPruneError):
        return str(error)
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
