"""The group itself, which each file of commands adds to."""

from __future__ import annotations

import click


@click.group()
def custodian() -> None:
    """Lend models: make keys, serve, grant, watch, block, stop.

    Commands other than init, serve and model seal talk to the running custodian by its admin API.

    Exit codes: 0 done, 1 refused, 2 malformed or misused, 3 unavailable, 4 conflict, 70 internal.
    """
