"""``fmcae verify``: replay the golden vectors that each file carries."""

from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import JsonOption, ProviderOption, ThreadsOption, print_json
from fmcae.errors import ArtefactError, GateError


def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Exported files. [default: those that ship with fmcae]"),
    ] = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the golden vectors that exported files carry.

    Seal, card and graph are checked, and the golden vectors are run, with no torch and no data set; exit code 5 if
    anything fails.
    """
    from fmcae.runtime.model import read_artefact, read_artefacts
    from fmcae.runtime.verify import verify as verify_artefact

    if not files:
        files = [artefact.path for artefact in read_artefacts().values()]
    results: list[dict[str, object]] = []
    for file in files:
        try:
            outcome = verify_artefact(read_artefact(file), provider, threads)
        except ArtefactError as error:
            results.append({"file": str(file), "passed": False, "failure": str(error).removeprefix(f"{file}: ")})
        else:
            results.append(
                {
                    "file": str(file),
                    "passed": outcome.passed,
                    "failure": outcome.failure,
                    "kind": outcome.kind,
                    "provider": outcome.provider,
                    "vectors": outcome.vectors,
                    "max_abs": outcome.difference.max_abs,
                    "max_rel": outcome.difference.max_rel,
                }
            )
    if as_json:
        print_json({"results": results})
    else:
        for result in results:
            verdict = "pass" if result["passed"] else "FAIL"
            if "kind" not in result:
                typer.echo(f"{verdict}  {result['file']}: {result['failure']}")
                continue
            typer.echo(
                f"{verdict}  {result['file']}: {result['kind']} on {result['provider']}, {result['vectors']} golden "
                f"vectors, largest difference {result['max_abs']:.2e} absolute, {result['max_rel']:.2e} relative"
                + (f": {result['failure']}" if result["failure"] else "")
            )
    failed = [result for result in results if not result["passed"]]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(results)} files failed; the first: {failed[0]['file']}: {failed[0]['failure']}"
        )
