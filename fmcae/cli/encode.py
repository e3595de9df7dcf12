"""``fmcae encode``: images to latents."""

from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import (
    ModelOption,
    ProviderOption,
    ThreadsOption,
    check_is_no_input,
    check_out,
    echo,
    printable,
    read_stdin,
)
from fmcae.cli.predict import PathsArgument


def encode(
    paths: PathsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .npy file to write.")],
    model: ModelOption = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Write the latents of images to a .npy file.

    They are float32 (N, latent_dim), a row for each image; the rows are printed with the images' names. Nothing is
    written if one image cannot be read.
    """
    import io

    import numpy as np

    from fmcae.errors import UsageError
    from fmcae.files import write_atomic
    from fmcae.runtime.model import load
    from fmcae.runtime.predict import BATCH_SIZE, find_images, read_input

    if out.suffix != ".npy":
        raise UsageError(f"out (={out}) must end in .npy")
    check_out(out)
    loaded = load(model, provider=provider, threads=threads, only="encoder")
    loaded.session("encoder")
    stdin = read_stdin(paths)
    names = []
    for name, error in find_images(paths):
        if error is not None:
            raise error
        names.append(name)
    check_is_no_input(out, names)
    latents = []
    for start in range(0, len(names), BATCH_SIZE):
        x = [read_input(loaded, name, stdin) for name in names[start : start + BATCH_SIZE]]
        latents.append(loaded.encode(np.stack(x)))
    z = np.concatenate(latents)
    buffer = io.BytesIO()
    np.save(buffer, z, allow_pickle=False)
    write_atomic(out, buffer.getvalue())
    for row, name in enumerate(names):
        echo(f"{row}: {printable(name)}")
    echo(f"{printable(str(out))}: {z.dtype} {z.shape}")
