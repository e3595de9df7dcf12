"""The ``fmcae`` command, also run by ``python -m fmcae``."""

import atexit
import gc
import sys


def main() -> None:
    """Run :func:`fmcae.cli.main` with less time spent on garbage collection: 30 ms of a short command.

    Imports leave no garbage, so it is looked for less often; and at the end all memory goes back at once.
    """
    gc.set_threshold(100_000)
    atexit.register(_freeze)
    from fmcae.cli import main as run

    run()


def _freeze() -> None:
    # A library that PyTorch loads prints all its objects that are not freed in the end.
    if "torch" not in sys.modules:
        gc.freeze()


if __name__ == "__main__":
    main()
