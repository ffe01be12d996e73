"""``aigovtool demo``: the whole story on this machine."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print the steps as JSON")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="run in this folder and leave it there, to look at",
)
@click.option(
    "--llm",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="MODEL.gguf",
    help="lend this language model, instead of one that reads digits; needs the extra `llm`",
)
def demo(as_json: bool, keep: Path | None, llm: Path | None) -> None:
    """Lend, attest, query, run out, free more, block, refuse and stop, as real processes."""
    from functools import partial

    from rich.console import Console

    from aigovtool.demo.steps import StepResult, tell
    from aigovtool.demo.story import QueriesStory
    from aigovtool.demo.talk import TalkStory

    story = QueriesStory if llm is None else partial(TalkStory, model=llm)

    console = Console(stderr=as_json, highlight=False)
    console.print("[bold]AIGovTool demo[/bold]: custodian, enclave and client on loopback")
    console.print(
        "[black on yellow] SIMULATED TEE: protects nothing from this machine's owner [/]\n"
    )
    begin = time.monotonic()
    count = 0

    def on_step(result: StepResult) -> None:
        nonlocal count
        count += 1
        mark = "[green]✔[/green]" if result.ok else "[red]✘[/red]"
        console.print(f"{mark} [bold]{count:2}[/bold] {result.name}")
        console.print(f"     {result.detail}", style="dim" if result.ok else "red", markup=False)

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="aigovtool-demo-") as folder:
            results = tell(story, Path(folder), on_step)
    else:
        results = tell(story, keep, on_step)
    ok = all(result.ok for result in results)
    verdict = "[green]all steps held[/green]" if ok else "[red]a step failed[/red]"
    console.print(f"\n{verdict} in {time.monotonic() - begin:.0f} s")
    if as_json:
        click.echo(json.dumps({"steps": [asdict(result) for result in results]}, indent=2))
    raise SystemExit(0 if ok else 1)
