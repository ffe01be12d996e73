"""The command line. One file for each group; a group is imported only when it is used."""

from __future__ import annotations

import importlib

import click

from aigovtool import __version__

_GROUPS = {
    "attestation": "verify, explain and compare attestation evidence",
    "client": "verify an enclave, query it, see what is left",
    "custodian": "lend models: serve, grant, watch, block, stop",
    "drill": "rehearse the disaster, and sign what was seen",
    "demo": "run the whole story on this machine",
    "log": "check a custodian's transparency log, and proofs from it, without trusting it",
    "enclave": "host a lent model inside a trusted execution environment",
    "statement": "check a custodian's signed account of a loan, offline",
}


class _LazyGroup(click.Group):
    """Imports ``aigovtool.cli.<group>`` when that group is asked for, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _GROUPS:
            return None
        module = importlib.import_module(f"aigovtool.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_GROUPS.items()))


@click.group(
    cls=_LazyGroup,
    epilog="Exit codes: 0 done, 1 refused, 2 malformed or misused, 3 unavailable, 4 conflict.",
)
@click.version_option(__version__, package_name="aigovtool")
def main() -> None:
    """Lend a model without handing it over."""
