"""Find what is installed, what of it works, and the commands that mend the rest.

Every check of ONNX Runtime runs in a process of its own: a broken installation can crash the one that imports it.
"""

import base64
import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from typing import Any

from fmcae import __version__
from fmcae.errors import FmcaeError
from fmcae.precision import PROVIDERS, Provider
from fmcae.runtime.fresh import call_in_fresh_process
from fmcae.runtime.machine import available_cpus, installed_version, platform_name
from fmcae.runtime.session import Session, import_onnxruntime, release, short_reason

OLDEST_ONNXRUNTIME = "1.19"
_PROBE_TIMEOUT_S = 120  # CUDA's first start compiles kernels for a GPU newer than the build
_REINSTALL = "pip install --force-reinstall fmcae  (from a checkout:  pip install --force-reinstall .)"
RUNTIME_PACKAGES = ("numpy", "pillow", "msgspec", "typer", "rich")
# What the extras of pyproject.toml for users bring; a test compares them.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torch", "torchvision", "onnx", "onnxscript", "safetensors", "filelock", "numba", "matplotlib", "scipy", "jinja2",
        "pooch", "spox",
    ),
    "ray": ("ray", "pandas", "pyarrow"),
    "serve": ("starlette", "uvicorn", "python-multipart", "prometheus-client"),
    "tensorboard": ("tensorboard",),
}  # fmt: skip

# A convolution (by cuDNN), a matrix product (by cuBLAS) and a ReLU, opset 13, IR 7, made with onnx.helper:
#     y = Relu(Reshape(Conv(x, k)) · m),  k = [[[[1, -1], [0.5, 2]]]],  m = [[1, -1], [0, 1], [2, 3], [-1, -2]]
# Its numbers are exact in float32, so that any working provider gives PROBE_Y to the last bit.
PROBE_MODEL = base64.b64decode(
    "CAcSBWZtY2FlOuoBCg8KAXgKAWsSAWMiBENvbnYKEgoBYwoBcxIBZiIHUmVzaGFwZQoRCgFmCgFtEgFwIgZNYXRNdWwKDAoBcBIBeSIE"
    "UmVsdRIFcHJvYmUqHwgBCAEIAggCEAFCAWtKEAAAgD8AAIC/AAAAPwAAAEAqKwgECAIQAUIBbUogAACAPwAAgL8AAAAAAACAPwAAAEAA"
    "AEBAAACAvwAAAMAqGQgCEAdCAXNKEP//////////BAAAAAAAAABaHAoBeBIXChUIARIRCgMSAU4KAggBCgIIAwoCCANiFAoBeRIPCg0I"
    "ARIJCgMSAU4KAggCQgQKABAN"
)
PROBE_X = [[[[0, 0.125, 0.25], [0.375, 0.5, 0.625], [0.75, 0.875, 1]]]]  # (1, 1, 3, 3)
PROBE_Y = [[2.75, 1.6875]]  # (1, 2)


@dataclass(frozen=True)
class Probe:
    """What a fresh process found on one provider."""

    provider: Provider
    works: bool  # a session was created, its provider read back, and the golden output came out
    reason: str | None = None  # why it does not work, and how to get it
    version: str | None = None
    package: str | None = None  # the one that the module's files say they are from; None if they do not say
    listed: tuple[str, ...] = ()  # ONNX Runtime's names of all providers in that build, working or not


@dataclass(frozen=True)
class ShippedFile:
    """A shipped artefact and what is wrong with it, if anything."""

    kind: str
    file: str
    problem: str | None


@dataclass(frozen=True)
class Problem:
    """Something to mend, and the command for it."""

    what: str
    command: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings; ``packages`` has None for one that is not installed."""

    python: str
    platform: str
    available_cpus: int
    packages: dict[str, str | None]
    onnxruntime_distributions: dict[str, str]
    probes: tuple[Probe, ...]
    artefacts: tuple[ShippedFile, ...]
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether the runtime works on the CPU."""
        return any(probe.provider == "cpu" and probe.works for probe in self.probes)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values."""
        return {"usable": self.usable, **asdict(self)}


def diagnose() -> Diagnosis:
    """Examine this installation and change nothing."""
    packages = {name: installed_version(name) for name in (*RUNTIME_PACKAGES, *chain(*EXTRAS.values()))}
    distributions = onnxruntime_distributions()
    probes = tuple(probe_provider(provider) for provider in PROVIDERS)
    artefacts, artefact_problems = _shipped()
    return Diagnosis(
        python=platform.python_version(),
        platform=platform_name(),
        available_cpus=available_cpus(),
        packages={"fmcae": __version__, **packages},  # a checkout runs without being installed
        onnxruntime_distributions=distributions,
        probes=probes,
        artefacts=artefacts,
        problems=(*onnxruntime_problems(distributions, probes[0]), *artefact_problems),
    )


def onnxruntime_distributions() -> dict[str, str]:
    """The versions of the installed distributions that bring the module ``onnxruntime``, by name."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        # onnxruntime-extensions, -genai and others share the name's beginning, not the module.
        if name.startswith(("onnxruntime", "ort-")) and any(
            file.as_posix() == "onnxruntime/__init__.py" for file in distribution.files or ()
        ):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def onnxruntime_problems(distributions: dict[str, str], cpu: Probe) -> list[Problem]:
    """Find what is wrong with the installed distributions.

    All have the same files. Another build belongs over the CPU build, whose record stays: fmcae asks for it, and without
    it pip would bring its files back at the next installation.
    """
    names = list(distributions)
    installed = " and ".join(f"{name} {version}" for name, version in distributions.items())
    others = [name for name in names if name != "onnxruntime"]
    owner = f" (those there now: {cpu.package} {cpu.version})" if cpu.package else ""
    if len(others) > 1:
        what = f"{installed} are installed and overwrite each other's files{owner}"
        return [Problem(what, f"pip uninstall -y {' '.join(names)} && pip install onnxruntime")]
    if len(names) > 1:
        (build,) = others
        if cpu.works and cpu.package in (None, build) and cpu.version == distributions[build]:
            return []
        what = f"the files of {build} {distributions[build]} were overwritten by those of onnxruntime{owner}"
        return [Problem(what, f"pip install --force-reinstall --no-deps {build}=={distributions[build]}")]
    if not cpu.works:
        reason = f"ONNX Runtime does not work on the CPU: {cpu.reason}"
        return [Problem(reason, f"pip install --force-reinstall {names[0] if names else 'onnxruntime'}")]
    problems = []
    version = cpu.version or "0"
    if release(version) < release(OLDEST_ONNXRUNTIME):
        what = f"onnxruntime (={version}) must be at least {OLDEST_ONNXRUNTIME}"
        problems.append(Problem(what, "pip install --upgrade onnxruntime"))
    foreign = cpu.package not in (None, *names) or version not in distributions.values()
    if names and foreign:  # one build was installed over another, and then the other's record was lost
        what = f"{installed} is installed, but the files there are those of {cpu.package or 'onnxruntime'} {version}"
        problems.append(Problem(what, f"pip uninstall -y {names[0]} && pip install --force-reinstall {names[0]}"))
    return problems


def probe_provider(provider: Provider) -> Probe:
    """Try a provider in a fresh process."""
    try:
        facts = call_in_fresh_process("fmcae.runtime.doctor", "_probe_child", provider, _PROBE_TIMEOUT_S)
    except FmcaeError as error:
        return Probe(provider, False, str(error))
    return Probe(**{**facts, "listed": tuple(facts["listed"])})


def _probe_child(provider: Provider) -> None:
    facts: dict[str, Any] = {}
    reason = None
    try:
        import numpy as np

        ort = import_onnxruntime()
        facts = {"version": ort.__version__, "package": getattr(ort, "package_name", None) or None}
        facts["listed"] = tuple(ort.get_available_providers())
        y = Session(PROBE_MODEL, provider=provider, threads=1).run(np.array(PROBE_X, np.float32))
        if not np.allclose(y, PROBE_Y, rtol=0, atol=1e-6):
            reason = f"it computes {y.tolist()} where {PROBE_Y} is right"
    except Exception as error:
        reason = str(error) if isinstance(error, FmcaeError) else f"{type(error).__name__}: {short_reason(error)}"
    print(json.dumps(asdict(Probe(provider, reason is None, reason, **facts))))


def _shipped() -> tuple[tuple[ShippedFile, ...], list[Problem]]:
    try:
        from fmcae.runtime.model import SHIPPED, file_name, read_artefact, shipped_folder
    except ImportError as error:
        return (), [Problem(f"a package that fmcae needs does not work: {error}", _REINSTALL)]
    found = []
    for name, (_, kinds) in SHIPPED.items():
        for kind in kinds:
            path, problem = shipped_folder(name) / file_name(kind), None
            try:
                read_artefact(path)
            except FmcaeError as error:
                problem = str(error).removeprefix(f"{path}: ")
            found.append(ShippedFile(kind, str(path), problem))
    broken = [Problem(f"{item.file}: {item.problem}", _REINSTALL) for item in found if item.problem is not None]
    return tuple(found), broken[:1]
