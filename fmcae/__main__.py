"""The ``fmcae`` command, also run by ``python -m fmcae``: the process around :func:`fmcae.cli.main`."""

import atexit
import errno
import gc
import io
import os
import select
import signal
import sys
from types import FrameType

TYPE_CHECKING = False  # importing typing takes 10 ms, in which Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

STOPPED, BROKEN_PIPE = 130, 141  # exit codes; a shell gives the same for a process that SIGINT or SIGPIPE ends


def main() -> None:
    """Run :func:`fmcae.cli.main` with less time spent on garbage collection: 30 ms of a short command.

    Imports leave no garbage, so it is looked for less often; and at the end all memory goes back at once.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background, a shell has it ignored
            signal.signal(signal.SIGINT, _interrupt)
        gc.set_threshold(100_000)
        atexit.register(_end)
        if os.name == "posix":
            sys.stdout, sys.stderr = _reopened(sys.stdout, 1), _reopened(sys.stderr, 2)
        try:
            from fmcae.cli import main as run
        except (ImportError, MemoryError) as error:
            sys.exit(f"error: {str(error) or 'out of memory'}")
        run()
    except KeyboardInterrupt:  # one more, while the first was handled
        sys.exit(STOPPED)
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _exit_at_once)  # nothing is left to tidy up


def _end() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and what Python still does is no place for an error
    # A library that PyTorch loads prints all its objects that are not freed in the end.
    if "torch" not in sys.modules:
        gc.freeze()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but exit at once during an import, where it would arrive as any other error or not at all."""
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename == "<frozen importlib._bootstrap>":
            _exit_at_once(number, frame)
        caller = caller.f_back
    raise KeyboardInterrupt


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    if "rich.live" in sys.modules and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(STOPPED)


def _reopened(stream: "Any", descriptor: int) -> io.TextIOWrapper:
    """The same stdout or stderr, which may be closed, as one that fails as :class:`_Stream` does."""
    if stream is None:  # the next file that is opened would take its place, and get what is printed
        os.dup2(os.open(os.devnull, os.O_RDONLY), descriptor)
        return io.TextIOWrapper(io.BufferedWriter(_Stream(descriptor, "w", closefd=False)), "utf-8")
    raw = _Stream(descriptor, "w", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)  # python -u has no buffer
    options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, **options)


class _Stream(io.FileIO):
    """stdout or stderr: a reader that has gone ends the process silently, and what stderr cannot show stops nothing."""

    def write(self, data: "Any") -> int:
        try:
            while len(data):  # a full device refuses nothing too, which typer tries
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])  # another process that shares it has made it non-blocking, and it is full
            return 0
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is still buffered must not fail once more
            if error.errno == errno.EPIPE:
                sys.exit(BROKEN_PIPE)
            if self.fileno() == 2:
                return len(data)
            error.filename = "stdout"
            raise


if __name__ == "__main__":
    main()
