"""``python -m fmcae`` is the ``fmcae`` command."""

from fmcae.cli import main

main()
