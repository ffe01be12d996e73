"""
What the simulation reports as MRTD: a digest of the code that runs.

MRTD = SHA-384 over these lines, sorted, each ended by a line feed, after `_HEADING`:

    file <path in the package> <SHA-256>           every file of the installed `aigovtool`
    interpreter <name> <version> <SHA-256>         the Python executable
    distribution <name> <version> <SHA-256>        each one that `aigovtool` needs, or that brings a
                                                   runtime for models; and what they need

A distribution counts by its RECORD, without the lines that depend on where or how it was installed
(scripts, caches, installer's notes). So the measurement is the same wherever the same things are
installed, from a wheel or editable, and a changed file of ours, another interpreter or another
version changes it. What it does not cover: files of a distribution that were changed without its
RECORD, the interpreter's standard library, and the operating system. Who could change these owns
the machine, and from the owner the simulation protects nothing.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import aigovtool
from aigovtool.errors import ConfigurationError

_HEADING = "aigovtool simulated measurement 1"
_PACKAGE = "aigovtool"
_CHUNK_BYTES = 1 << 20
# RECORD lines that differ between two installations of the same wheel.
_INSTALLERS_OWN = re.compile(
    r"^\.\.|\.pyc,|/(?:INSTALLER|REQUESTED|RECORD|direct_url\.json|uv_cache\.json),"
)
_RUNTIME_OF_OURS = "xllamacpp"  # of the extra `llm`: it sees weights and queries
_REQUIREMENT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """
    Args:
        mr_td: 48 bytes.
        lines: what it was made of, for whoever wants to know why it changed.
    """

    mr_td: bytes
    lines: tuple[str, ...]


def measure(package: Path | None = None) -> Measurement:
    """
    Measure the code of this process.

    Args:
        package: directory of the package to measure; None for the one that is imported.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    root = package or Path(aigovtool.__path__[0])
    try:
        lines = sorted([*_files(root), _interpreter(), *_distributions()])
    except OSError as error:
        raise ConfigurationError(
            "the installed code cannot be measured",
            code="simulation.measure",
            came=f"{error.filename}: {error.strerror}",
            mend="make the installation readable for the user that runs the enclave",
        ) from None
    text = "\n".join([_HEADING, *lines, ""])
    return Measurement(mr_td=hashlib.sha384(text.encode()).digest(), lines=tuple(lines))


def _files(root: Path) -> list[str]:
    return [
        f"file {path.relative_to(root).as_posix()} {_digest(path)}"
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]


def _interpreter() -> str:
    executable = Path(sys.executable).resolve()
    name = platform.python_implementation().lower()
    return f"interpreter {name} {platform.python_version()} {_digest(executable)}"


def _distributions() -> list[str]:
    """Walk the requirements from ours; what is not installed here (extras, markers) is not run."""
    lines, seen, todo = [], {_PACKAGE}, _requirements(metadata.distribution(_PACKAGE))
    todo += [_RUNTIME_OF_OURS, *_runtimes()]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        lines.append(f"distribution {name} {distribution.version} {_record(distribution)}")
        todo += _requirements(distribution)
    return lines


def _runtimes() -> list[str]:
    """Return who brings runtimes for models beside ours (`enclave.runtime.registry`)."""
    found = metadata.entry_points(group="aigovtool.runtimes")
    return [_canonical(one.dist.name) for one in found if one.dist is not None]


def _requirements(distribution: metadata.Distribution) -> list[str]:
    names = []
    for requirement in distribution.requires or ():
        match = _REQUIREMENT.match(requirement)
        if match and "extra ==" not in requirement.replace("extra==", "extra =="):
            names.append(_canonical(match[0]))
    return names


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _record(distribution: metadata.Distribution) -> str:
    record = distribution.read_text("RECORD") or ""
    kept = sorted(line for line in record.splitlines() if not _INSTALLERS_OWN.search(line))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
