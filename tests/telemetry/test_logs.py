"""What a logger is given, and what of it reaches the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from aigovtool.telemetry import logs

SECRET = "kanarienvogel"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(logs.OURS)
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def fail() -> None:
    try:
        raise ValueError(f"cannot read {SECRET}")
    except ValueError as error:
        raise RuntimeError(SECRET) from error


@pytest.mark.parametrize("form", logs.FORMATS)
def test_an_exception_is_logged_by_kind_and_place_without_its_words(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level="debug", form=form)
    try:
        fail()
    except RuntimeError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    came = capsys.readouterr().err
    assert SECRET not in came
    assert "RuntimeError in fail" in came
    assert "after ValueError in fail" in came


def test_a_line_of_json_is_one_object_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", form="json")
    logger = logging.getLogger("aigovtool.test")
    evil = 'x"}\n{"event":"loan.stopped"}\u2028\x1b[2J'
    logger.warning("came %s", evil, extra=logs.event("tested", loan="loan_x", lease=None))
    (line,) = capsys.readouterr().err.splitlines()
    read = json.loads(line)
    assert (read["event"], read["loan"], read["message"]) == ("tested", "loan_x", f"came {evil}")
    assert read["level"] == "warning"
    assert read["time"].endswith("Z")
    assert "lease" not in read


def test_no_field_takes_the_place_of_a_lines_own(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", form="json")
    logging.getLogger("aigovtool.x").info("words", extra=logs.event("real", level="x", message="x"))
    read = json.loads(capsys.readouterr().err)
    assert (read["event"], read["level"], read["message"]) == ("real", "info", "words")


def test_lines_for_people_are_single_and_control_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(level="info", form="human")
    logging.getLogger("aigovtool.test").info("came %s", "a\nINFO forged\x1b[2J")
    came = capsys.readouterr().err
    assert len(came.splitlines()) == 1
    assert "\x1b" not in came


def test_other_libraries_do_not_follow_us_to_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """At debug, WebSocket and HTTP libraries print headers and frames."""
    logs.configure(level="debug", form="human")
    for name in ("websockets.server", "aiohttp.client", "uvicorn.error", "asyncio"):
        logging.getLogger(name).debug("Authorization: Bearer %s", SECRET)
        logging.getLogger(name).info("< TEXT %s", SECRET)
    logging.getLogger("aigovtool.enclave").debug("ours")
    came = capsys.readouterr().err
    assert SECRET not in came
    assert "ours" in came
