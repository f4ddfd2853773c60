"""The command line: one file per command, no logic. Heavy imports happen inside the commands."""


def main() -> None:
    """Entry point; see `adaptprune.cli.app.run` for the exit codes."""
    import atexit
    import signal  # first of all, and little: until the handler stands, Ctrl-C shows where Python is

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is signal.default_int_handler:  # else it is ignored, as in the background of a script, or another's
            signal.signal(signal.SIGINT, _end_at_once)
        started = True
    except ValueError:  # in another thread than the main one
        started = False
    try:
        from adaptprune.cli import ends

        ends.mend_streams()
        from adaptprune.cli import app

        app.add_commands()
    finally:
        if started and before is not None:
            signal.signal(signal.SIGINT, before)
    code = app.run()
    atexit.register(_end_by_signal)  # the last in is the first out: before what libraries put in order
    raise SystemExit(code)


def _end_at_once(number: int, frame: object) -> None:
    """Without a word: Python is still importing, and nothing has begun that would have to be put in order."""
    import os

    os._exit(128 + number)


def _end_by_signal() -> None:
    """From here on Ctrl-C ends the process as it ends any other: everything has been said."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


__all__ = ["main"]
