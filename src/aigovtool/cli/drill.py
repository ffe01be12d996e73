"""``aigovtool drill``: rehearse the disaster on one's own machines, and sign what was seen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aigovtool.cli.output import (
    REFUSED,
    exits,
    json_option,
    print_json,
    result,
    talk,
    warn_simulated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aigovtool.crypto.signing import SigningKey
    from aigovtool.drill.rehearsal import Scenario
    from aigovtool.drill.sheet import Result, Sheet

SIMULATED = "simulated"


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Shorter leases and fewer repetitions.")
@click.option("--only", metavar="NAME", multiple=True, help="This scenario; may be repeated.")
@click.option("--list", "only_list", is_flag=True, help="Name the scenarios, and play none.")
@click.option(
    "--tee",
    default=SIMULATED,
    show_default=True,
    type=click.Choice([SIMULATED, "auto"]),
    help="auto attests with the TEE of this machine; --policy must accept it.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What evidence the drill's loans accept, with --tee auto.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the signed sheet there.",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign with the Ed25519 seed in this file, made if missing; default: a key of this run.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run in this folder, and leave logs and ledgers there.",
)
@json_option
@click.pass_context
@exits
def drill(
    context: click.Context,
    *,
    quick: bool,
    only: tuple[str, ...],
    only_list: bool,
    tee: str,
    policy: Path | None,
    output: Path | None,
    key_file: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """
    Rehearse the disaster: kills, partitions, pauses, replays, restored disks, a stop under load.

    Custodian, enclaves and consumers are real processes of this drill's own on loopback, in a
    folder of their own; no custodian that serves is touched. Exit code 0: all scenarios passed;
    1: one failed.
    """
    if context.invoked_subcommand is not None:
        return
    from aigovtool.drill.rehearsals import SCENARIOS

    chosen = [one for one in SCENARIOS if not only or one.name in only]
    unknown = set(only) - {one.name for one in SCENARIOS}
    if unknown:
        names = ", ".join(one.name for one in SCENARIOS)
        raise click.UsageError(f"no such scenario: {', '.join(sorted(unknown))}; there are {names}")
    if only_list:
        if as_json:
            print_json([{"name": one.name, "title": one.title} for one in chosen])
        else:
            for one in chosen:
                click.echo(f"{one.name:16} {one.title}")
        return
    if tee != SIMULATED and policy is None:
        raise click.UsageError("--tee auto needs --policy: what evidence of this machine to accept")
    with tempfile.TemporaryDirectory(prefix="aigovtool-drill-") as folder:
        sheet = _play(keep or Path(folder), chosen, tee=tee, policy=policy, quick=quick)
    from aigovtool.drill.sheet import SignedSheet, write_sheet
    from aigovtool.wire.codec import decode

    signed = write_sheet(sheet, _key(key_file))
    if output is not None:
        output.write_bytes(signed)
    key = decode(signed, SignedSheet).key
    if as_json:
        print_json({"passed": sheet.passed, "key": key, "sheet": sheet})
    else:
        _tell_verdict(sheet, key)
        if output is not None:
            talk.print(f"signed sheet in {output}; check it: aigovtool drill verify {output}")
    if not sheet.passed:
        context.exit(REFUSED)


@drill.command()
@click.argument("sheet", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--key", metavar="ed25519:…", help="Who must have signed it.")
@json_option
@click.pass_context
@exits
def verify(context: click.Context, *, sheet: Path, key: str | None, as_json: bool) -> None:
    """
    Check a drill's sheet: its signature, and each verdict against its measurements.

    Exit code 0: genuine, and all passed; 1: not genuine, or a scenario failed.
    """
    from aigovtool.drill.sheet import read_file, read_sheet

    read, signer = read_sheet(read_file(sheet), key=key)
    if read.simulated:
        warn_simulated()
    if as_json:
        print_json({"passed": read.passed, "key": signer, "sheet": read})
    else:
        for one in read.results:
            _tell_result(one)
        _tell_verdict(read, signer)
    if not read.passed:
        context.exit(REFUSED)


def _play(
    folder: Path, chosen: Sequence[Scenario], *, tee: str, policy: Path | None, quick: bool
) -> Sheet:
    from aigovtool import __version__
    from aigovtool.clock import SystemClock
    from aigovtool.drill.rehearsal import Rehearsal, play
    from aigovtool.drill.sheet import VERSION, Sheet
    from aigovtool.enclave.attester.detect import choose

    clock = SystemClock()
    if tee != SIMULATED:
        tee = choose(None, clock=clock).attester.tee.value
    if tee == SIMULATED:
        warn_simulated()
    else:
        talk.print(f"on real hardware: {tee}", style="bold")
    began = clock.now()
    talk.print(f"{len(chosen)} scenarios with processes of this drill's own, in {folder}")
    results = play(
        Rehearsal(folder=folder, tee=tee, policy=policy, quick=quick),
        chosen,
        _tell_result,
    )
    return Sheet(
        version=VERSION,
        software=f"aigovtool/{__version__}",
        tee=tee,
        simulated=tee == SIMULATED,
        quick=quick,
        began=began,
        ended=clock.now(),
        results=tuple(results),
    )


def _tell_result(one: Result) -> None:
    mark = "[yellow]SKIP[/]" if one.skipped else "[green]PASS[/]" if one.passed else "[red]FAIL[/]"
    talk.print(f"{mark}  [bold]{one.name}[/]: {one.title} ({one.seconds:.0f} s)")
    if one.skipped:
        talk.print(f"      {one.skipped}", style="dim")
    for cut in one.measured.cut_offs:
        held = cut.measured_s <= cut.bound_s
        talk.print(
            f"      after {cut.after}: last answer {cut.measured_s:.2f} s later, at most "
            f"{cut.bound_s:.2f} s promised; {cut.tried} refused or kept waiting after that",
            style="dim" if held else "red",
            markup=False,
        )
    if (count := one.measured.count) is not None:
        talk.print(
            f"      {count.served} served of {count.granted} granted; {count.settled} settled, "
            f"{count.forfeited} forfeited, {count.left} left",
            style="dim",
        )
    for note in one.measured.notes:
        talk.print(f"      {note}", style="dim", markup=False)
    for reason in one.wrong:
        talk.print(f"      {reason}", style="red", markup=False)


def _tell_verdict(sheet: Sheet, key: str) -> None:
    played = [one for one in sheet.results if one.skipped is None]
    failed = [one.name for one in played if not one.passed]
    where = "in simulation" if sheet.simulated else f"on {sheet.tee}"
    if failed:
        result.print(f"FAILED {where}: {', '.join(failed)}", style="bold red")
    else:
        result.print(f"PASSED {where}: {len(played)} scenarios", style="bold green")
    worst = max((cut.measured_s for one in played for cut in one.measured.cut_offs), default=0.0)
    result.print(f"longest cut-off {worst:.2f} s; signed by {key}")


def _key(path: Path | None) -> SigningKey:
    from aigovtool.crypto.signing import SigningKey
    from aigovtool.custodian import files

    if path is None:
        return SigningKey.generate()
    if not path.exists():
        key = SigningKey.generate()
        files.write_whole(path, key.seed().hex() + "\n")
        return key
    text = files.read_text(path, mend="name a file that `aigovtool drill --key` made").strip()
    try:
        return SigningKey.from_seed(bytes.fromhex(text))
    except ValueError:
        raise click.UsageError(f"{path} does not hold an Ed25519 seed in hex") from None
