"""``fmcae doctor``: what is installed, which providers really run, and what to run to mend the rest."""

from typing import TYPE_CHECKING

import typer

from fmcae.cli.options import JsonOption, print_json
from fmcae.errors import INSTALL

if TYPE_CHECKING:
    from fmcae.runtime.doctor import Diagnosis


def doctor(json_output: JsonOption = False) -> None:
    """Check this installation and name what mends it.

    Packages, providers and the shipped artefacts are tried, and what is broken comes with the command that mends it. The
    exit code is 0 if the runtime works on the CPU, and 1 if it does not.
    """
    from fmcae.runtime.doctor import diagnose

    diagnosis = diagnose()
    if json_output:
        print_json(diagnosis.to_json())
    else:
        _print(diagnosis)
    if not diagnosis.usable:
        raise typer.Exit(1)


def _print(diagnosis: "Diagnosis") -> None:
    from rich.console import Console
    from rich.text import Text

    from fmcae.runtime.doctor import EXTRAS, RUNTIME_PACKAGES
    from fmcae.runtime.session import ORT_NAMES, PROVIDER_FACTS

    console = Console(soft_wrap=True, highlight=False)
    packages = diagnosis.packages

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text(f"{name:<14}"), Text(text, style=style), sep="")

    line("fmcae", f"{packages['fmcae']}, Python {diagnosis.python}, {diagnosis.platform}")
    line("CPUs", f"{diagnosis.available_cpus} that this process may use")
    line("packages", ", ".join(f"{name} {packages[name] or 'missing'}" for name in RUNTIME_PACKAGES))
    builds = ", ".join(f"{name} {version}" for name, version in diagnosis.onnxruntime_distributions.items())
    line("ONNX Runtime", builds or "not installed by pip")
    for extra, names in EXTRAS.items():
        installed = ", ".join(f"{name} {packages[name]}" for name in names if packages[name])
        remedy = INSTALL.format(extra=extra)
        line(f"[{extra}]", installed or f"not installed; to get it:  {remedy}")
        missing = [name for name in names if packages[name] is None]
        if installed and missing:  # packages of other programs, perhaps
            line("", f"to get the rest:  {remedy}  (missing: {', '.join(missing)})")
    for probe in diagnosis.probes:
        facts = PROVIDER_FACTS[probe.provider]
        tried = "" if facts.tried else " (not tried by us)"
        if probe.works:
            line(probe.provider, f"works: {facts.ort_name} gives the golden output{tried}", "green")
        else:
            reason = (probe.reason or "no reason given").removeprefix(f"{facts.title} cannot run here: ")
            line(probe.provider, f"no: {reason}{tried}", "red" if probe.provider == "cpu" else "")
    listed = diagnosis.probes[0].listed
    line("also listed", ", ".join(name for name in listed if name not in ORT_NAMES.values()) or "no other provider")
    for artefact in diagnosis.artefacts:
        style = "red" if artefact.problem else "green"
        line(artefact.kind, artefact.problem or f"sealed as shipped, {artefact.file}", style)
    console.print()
    for problem in diagnosis.problems:
        console.print(Text.assemble((f"problem: {problem.what}", "red"), f"\n  mend it:  {problem.command}"))
    if not diagnosis.problems:
        console.print(Text("no problem found", style="green"))
