"""``fmcae verify``: replay the golden vectors that each file carries."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.options import JsonOption, ProviderOption, ThreadsOption, complete_model, echo_verdict, print_json
from fmcae.errors import ArtefactError, GateError

if TYPE_CHECKING:
    from fmcae.card import Kind
    from fmcae.runtime.model import Artefact

FILES_HELP = "Exported files, or folders of them. [default: those that ship and are made for the provider]"


def verify(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help=FILES_HELP, autocompletion=complete_model)
    ] = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the golden vectors that exported files carry.

    Seal, card and graph are checked, and the golden vectors are run, with no torch and no data set; exit code 5 if
    anything fails.
    """
    from fmcae.precision import PRECISION_PROVIDERS
    from fmcae.runtime.model import SHIPPED, artefact_files, check_one_export, read_artefact, resolve_path

    made_for_provider = [name for name, (precision, _) in SHIPPED.items() if provider in PRECISION_PROVIDERS[precision]]
    results: list[dict[str, Any]] = []
    for name in files or made_for_provider:
        try:
            files_here = artefact_files(name) if os.path.isdir(resolve_path(name)) else {}
        except ArtefactError as error:
            results.append(_failed(name, error))
            continue
        if provider != "cpu":
            files_here.pop("picture", None)  # which runs on the CPU alone
        read: dict[Kind, Artefact] = {}
        for kind, path in files_here.items():
            try:
                read[kind] = read_artefact(path)
            except ArtefactError as error:
                results.append(_failed(str(path), error))
            else:
                results.append(_replayed(str(path), read[kind], provider, threads))
        if not files_here:
            results.append(_replayed(name, name, provider, threads))
        elif len(read) == len(files_here):
            try:
                check_one_export(read)
            except ArtefactError as error:
                results.append(_failed(name, error))
    if as_json:
        print_json({"results": results})
    else:
        for result in results:
            echo_verdict(result["passed"], "pass" if result["passed"] else "FAIL", _rest_of_line(result))
    failed = [result for result in results if not result["passed"]]
    if failed:
        count = f"{len(failed)} of {len(results)} files failed"
        raise GateError(f"{count}; the first: {failed[0]['file']}: {failed[0]['failure']}")


def _replayed(file: str, artefact: "Artefact | str", provider: str, threads: int | None) -> dict[str, Any]:
    from fmcae.runtime.verify import verify as verify_artefact

    try:
        outcome = verify_artefact(artefact, provider, threads)
    except ArtefactError as error:
        return _failed(file, error)
    facts = {name: getattr(outcome, name) for name in ("passed", "failure", "kind", "provider", "vectors")}
    return {"file": file, **facts, "max_abs": outcome.difference.max_abs, "max_rel": outcome.difference.max_rel}


def _failed(file: str, error: ArtefactError) -> dict[str, Any]:
    return {"file": file, "passed": False, "failure": str(error).removeprefix(f"{Path(file)}: ")}


def _rest_of_line(result: dict[str, Any]) -> str:
    line = f"  {result['file']}"
    if "kind" in result:
        line += (
            f": {result['kind']} on {result['provider']}, {result['vectors']} golden vectors, largest difference "
            f"{result['max_abs']:.2g} absolute, {result['max_rel']:.2g} relative"
        )
    return line + (f": {result['failure']}" if result["failure"] else "")
