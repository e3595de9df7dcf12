"""``fmcae verify``: replay the golden vectors that each file carries."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import JsonOption, ProviderOption, ThreadsOption, print_json, printable
from fmcae.errors import ArtefactError, GateError


def verify(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Exported files, or folders of them. [default: those that ship with fmcae]"
        ),
    ] = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the golden vectors that exported files carry.

    Seal, card and graph are checked, and the golden vectors are run, with no torch and no data set; exit code 5 if
    anything fails.
    """
    from fmcae.runtime.model import SHIPPED, artefact_files, located

    results: list[dict[str, object]] = []
    for name in files or SHIPPED:
        try:
            is_folder = name != "" and os.path.isdir(located(name))
            paths = [str(path) for path in artefact_files(name).values()] if is_folder else [name]
        except ArtefactError as error:
            results.append(_failed(name, error))
        else:
            results += [_replayed(path, provider, threads) for path in paths]
    if as_json:
        print_json({"results": results})
    else:
        for result in results:
            verdict = f"{'pass' if result['passed'] else 'FAIL'}  {printable(str(result['file']))}"
            if "kind" not in result:
                typer.echo(f"{verdict}: {printable(str(result['failure']))}")
                continue
            typer.echo(
                f"{verdict}: {result['kind']} on {result['provider']}, {result['vectors']} golden "
                f"vectors, largest difference {result['max_abs']:.2e} absolute, {result['max_rel']:.2e} relative"
                + (f": {result['failure']}" if result["failure"] else "")
            )
    failed = [result for result in results if not result["passed"]]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(results)} files failed; the first: {failed[0]['file']}: {failed[0]['failure']}"
        )


def _replayed(file: str, provider: str, threads: int | None) -> dict[str, object]:
    from fmcae.runtime.model import read_artefact
    from fmcae.runtime.verify import verify as verify_artefact

    try:
        outcome = verify_artefact(read_artefact(file), provider, threads)
    except ArtefactError as error:
        return _failed(file, error)
    return {
        "file": file,
        "passed": outcome.passed,
        "failure": outcome.failure,
        "kind": outcome.kind,
        "provider": outcome.provider,
        "vectors": outcome.vectors,
        "max_abs": outcome.difference.max_abs,
        "max_rel": outcome.difference.max_rel,
    }


def _failed(file: str, error: ArtefactError) -> dict[str, object]:
    return {"file": file, "passed": False, "failure": str(error).removeprefix(f"{Path(file)}: ")}
