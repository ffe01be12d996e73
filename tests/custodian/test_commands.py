"""The commands as a user types them: files, modes, exit codes, and nothing half done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aigovtool.cli.custodian import custodian
from aigovtool.custodian.app import initialise, open_custodian
from aigovtool.custodian.data import DataFolder
from aigovtool.errors import ConfigurationError, ConflictError
from tests import postgresql
from tests.custodian.gguf import gguf
from tests.custodian.house import DIGITS
from tests.custodian.ledgers import SetClock

PROCESS_LIMIT_S = 30.0


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIGOVTOOL_SIMULATED_PLATFORM", str(tmp_path / "platform"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(custodian, arguments)


def init(data: Path) -> None:
    result = run("init", "--data", str(data), "--simulated", "--json")
    assert result.exit_code == 0, result.output


class Serving:
    """``custodian serve`` in a process of its own."""

    def __init__(self, data: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "aigovtool", "custodian", "serve", "--data", str(data),
                "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--json", *more,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Serving:
        """Wait for what it says when it is ready: one JSON object over several lines."""
        assert self.process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            said += line
        self.banner = json.loads(said)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(PROCESS_LIMIT_S)


@pytest.mark.usefixtures("platform")
def test_init_makes_files_for_the_owner_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    assert {path.name for path in data.iterdir()} == {
        "admin.token", "ledger.db", "master.key", "metrics.token", "models", "policy.toml",
    }  # fmt: skip
    for path in (data, *data.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("kept", ["ledger.db", "master.key", "admin.token"])
def test_init_never_touches_a_folder_that_has_been_used(tmp_path: Path, kept: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / kept).write_text("precious")
    result = run("init", "--data", str(data))
    assert result.exit_code == 4
    assert [path.name for path in data.iterdir()] == [kept]
    assert (data / kept).read_text() == "precious"


def test_init_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise ConfigurationError("no")

    monkeypatch.setattr("aigovtool.custodian.app.make_custodian_root", fail)
    with pytest.raises(ConfigurationError):
        initialise(DataFolder(tmp_path / "data"), clock=SetClock(), environ={})
    assert not list((tmp_path / "data").iterdir())


def test_a_folder_without_a_custodian_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    result = run("serve", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "custodian init" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("init", "--data", str(tmp_path / "file" / "data"))
    assert result.exit_code == 2


@pytest.mark.usefixtures("platform")
def test_a_wrong_or_open_master_key_stops_the_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    (data / "master.key").chmod(0o644)
    result = run("serve", "--data", str(data))
    assert result.exit_code == 2
    assert "chmod 600" in result.stderr
    (data / "master.key").write_text("00" * 32)
    (data / "master.key").chmod(0o600)
    result = run("serve", "--data", str(data))
    assert result.exit_code == 2
    assert "master key" in result.stderr


@pytest.mark.usefixtures("platform")
def test_the_admin_api_stays_on_loopback(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    before = sorted(path.name for path in data.iterdir())
    result = run("serve", "--data", str(data), "--admin-listen", "0.0.0.0:0")
    assert result.exit_code == 2
    assert "--admin-tls-certificate" in result.stderr
    assert sorted(path.name for path in data.iterdir()) == before


@pytest.mark.usefixtures("platform")
def test_an_unknown_database_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    result = run("serve", "--data", str(data), "--database", "mysql://root@db/x")
    assert result.exit_code == 2


@pytest.mark.usefixtures("platform")
def test_a_bad_model_leaves_no_loan(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    result = run(
        "serve", "--data", str(data), "--upload", str(tmp_path / "bad.onnx"),
        "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
    )  # fmt: skip
    assert result.exit_code == 2
    assert not (data / "loan.toml").exists()
    assert not list((data / "models").iterdir())


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    initialise(folder, clock=SetClock(), environ={})
    with (
        open_custodian(folder, clock=SetClock(), environ=os.environ),
        pytest.raises(ConflictError),
        open_custodian(folder, clock=SetClock(), environ=os.environ),
    ):
        pass


def test_a_command_without_a_server_is_unavailable(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    initialise(folder, clock=SetClock(), environ={})
    with socket.socket() as bound:  # and not listening, so nobody answers there
        bound.bind(("127.0.0.1", 0))
        folder.admin_url.write_text(f"http://127.0.0.1:{bound.getsockname()[1]}\n")
        result = run("loan", "list", "--data", str(folder.path), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["kind"] == "unavailable"
    assert run("loan", "list").exit_code == 2


@pytest.mark.usefixtures("platform")
def test_the_whole_command_line_against_a_running_custodian(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)

    def seen(*arguments: str) -> object:
        result = run(*arguments, "--data", str(data), "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    with Serving(data, "--upload", str(DIGITS), "--num-requests", "3") as serving:
        for name in ("loan.toml", "consumer.key", "manifest.toml", "admin.token"):
            assert (data / name).exists()
        (loan,) = seen("loan", "list")  # type: ignore[misc]
        assert loan["account"]["left"] == 3
        assert seen("grant", "4")["account"]["left"] == 7  # type: ignore[index]
        assert seen("stop", "--reason", "x")["state"] == "stopped"  # type: ignore[index]
        assert seen("loan", "resume", "digits")["state"] == "active"  # type: ignore[index]
        made = seen("consumer", "create", "--name", "ward", "--budget", "2")
        assert made["consumer"]["account"]["left"] == 2  # type: ignore[index]
        granted = seen("grant", "5", "--consumer", "ward", "--reason", "busy")
        assert granted["account"]["left"] == 7  # type: ignore[index]  # its own budget, not this
        assert seen("block", "ward", "--reason", "x")["blocked"] is True  # type: ignore[index]
        assert seen("consumer", "unblock", "ward")["blocked"] is False  # type: ignore[index]
        ward = next(c for c in seen("consumer", "list") if c["name"] == "ward")  # type: ignore[attr-defined]
        assert ward["account"]["left"] == 7
        model = seen("model", "list")[0]  # type: ignore[index]
        second = seen("loan", "create", "--name", "second", "--model", model["name"],
                      "--credits", "9", "--ticket", str(tmp_path / "second.toml"))  # fmt: skip
        assert (tmp_path / "second.toml").stat().st_mode & 0o077 == 0
        assert run("grant", "1", "--data", str(data)).exit_code == 4  # which loan?
        named = run("grant", "loan_x", "5", "--data", str(data))
        assert named.exit_code == 2
        assert "name the loan with --loan" in named.stderr
        assert run("stop", "none", "--data", str(data)).exit_code == 1
        assert seen("loan", "close", second["loan"]["loan"])["state"] == "closed"  # type: ignore[index]
        assert run("resume", "second", "--data", str(data)).exit_code == 4
        for flag, evictable in (("--evictable", True), ("--no-evictable", False)):
            assert seen("loan", "set", "digits", flag)["terms"]["evictable"] is evictable  # type: ignore[index]
        assert "[custodian]" in run("loan", "manifest", "digits", "--data", str(data)).stdout
        assert seen("loan", "ticket", "digits")["ticket"]  # type: ignore[index]
        assert "credits.granted" in [one["kind"] for one in seen("events")]  # type: ignore[attr-defined]
        for words in (["exposure"], ["consumption"], ["lease", "list"], ["session", "list"],
                      ["request", "list"], ["loan", "show", "digits"]):  # fmt: skip
            seen(*words)
            assert run(*words, "--data", str(data)).exit_code == 0
        shown = run("loan", "show", "digits", "--data", str(data)).stdout
        assert "if you stop now, at most 0 inferences and 0.0 s can still be used" in shown
        watched = subprocess.Popen(
            [sys.executable, "-m", "aigovtool", "custodian", "watch", "--data", str(data),
             "--json"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert watched.stdout is not None
        assert json.loads(watched.stdout.readline())["loans"]
        watched.send_signal(signal.SIGINT)
        assert watched.wait(PROCESS_LIMIT_S) in (0, 130)
        watched.stdout.close()
        assert serving.end(signal.SIGTERM) == 0


@pytest.mark.usefixtures("platform")
def test_a_language_model_is_lent_at_a_price_with_limits_by_commands_alone(tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "tiny.gguf"
    model.write_bytes(gguf())
    init(data)
    said = ("--price-input", "2", "--price-output", "6", "--max-output-tokens-per-day", "900")
    with Serving(data, "--upload", str(model), *said, "--share-prefixes") as serving:
        data_option = ("--data", str(data))
        shown = json.loads(run("loan", "show", "--json", *data_option).stdout)["terms"]
        assert shown["token_price"] == {"input": 2, "output": 6}
        assert shown["shared_prefixes"] is True
        assert shown["max_lease_credits"] == 6 * 2048
        assert shown["extraction"]["output_tokens_per_day"] == 900
        changes = ("--max-output-tokens-per-day", "none", "--max-top-logprobs", "0")
        more = ("--price-output", "5", "--no-share-prefixes", "--alarm-alike", "7", "--json")
        changed = run("loan", "set", *changes, *more, *data_option)
        terms = json.loads(changed.stdout)["terms"]
        assert terms["token_price"] == {"input": 2, "output": 5}
        assert terms["shared_prefixes"] is False
        limits = terms["extraction"]
        assert (limits["top_logprobs"], limits["alike_per_day"]) == (0, 7)
        assert limits["output_tokens_per_day"] is None
        told = run("loan", "show", *data_option).stdout
        assert "2 credits a token of input, 5 of output; top logprobs 0; alike per day 7" in told
        assert json.loads(run("model", "list", "--json", *data_option).stdout)[0]["context"] == 2048
        refused = run("loan", "set", "--price-output", "7", *data_option)
        assert refused.exit_code == 2
        assert f"--max-lease-credits {7 * 2048}" in refused.output
        created = run(
            "loan", "create", "--name", "second", "--model", "tiny", "--top-labels", "3", "--json",
            *data_option,
        )  # fmt: skip
        assert json.loads(created.stdout)["loan"]["terms"]["extraction"]["top_labels"] == 3
        assert serving.end(signal.SIGTERM) == 0


@pytest.mark.usefixtures("platform")
def test_the_same_command_after_a_kill_finds_everything_as_it_was(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    with Serving(data, "--upload", str(DIGITS), "--num-requests", "3") as serving:
        assert run("grant", "4", "--data", str(data)).exit_code == 0
        serving.end(signal.SIGKILL)
    token = (data / "loan.toml").read_text().split("token = ")[1]
    with Serving(data, "--upload", str(DIGITS), "--num-requests", "3") as serving:
        (loan,) = json.loads(run("loan", "list", "--data", str(data), "--json").stdout)
        assert loan["account"]["granted"] == 7
        assert serving.end(signal.SIGINT) == 0
    assert (data / "loan.toml").read_text().split("token = ")[1] == token


@pytest.mark.usefixtures("platform")
def test_a_port_in_use_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(
            "serve", "--data", str(data), "--upload", str(DIGITS),
            "--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0",
        )  # fmt: skip
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert not (data / "loan.toml").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o500)
    assert run("init", "--data", str(data)).exit_code == 2


# --- with the ledger in PostgreSQL ---------------------------------------------------------------


@pytest.fixture
def empty_url() -> Iterator[str]:
    with postgresql.server_or_skip().database(empty=True) as url:
        yield url


@pytest.mark.usefixtures("platform")
def test_init_notes_the_database_for_its_owner_only(tmp_path: Path, empty_url: str) -> None:
    data = tmp_path / "custodian"
    result = run("init", "--data", str(data), "--simulated", "--database", empty_url, "--json")
    assert result.exit_code == 0, result.output
    assert (data / "database.url").stat().st_mode & 0o777 == 0o600
    assert not (data / "ledger.db").exists()
    with Serving(data) as serving:
        assert serving.process.poll() is None
        with Serving(data):  # a replica: the folder is not held
            pass


@pytest.mark.usefixtures("platform")
def test_init_never_takes_a_database_that_is_a_custodians(tmp_path: Path, empty_url: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("init", "--data", str(first), "--database", empty_url).exit_code == 0
    result = run("init", "--data", str(second), "--database", empty_url)
    assert result.exit_code == 4
    assert not list(second.iterdir())
    init(second)
    theirs = open_custodian(DataFolder(second), clock=SetClock(), environ={}, database=empty_url)
    with pytest.raises(ConfigurationError), theirs:  # keys that are not this ledger's
        pass


@pytest.mark.usefixtures("platform")
def test_serve_makes_no_ledger_in_an_empty_database(tmp_path: Path, empty_url: str) -> None:
    data = tmp_path / "custodian"
    init(data)
    result = run("serve", "--data", str(data), "--database", empty_url)
    assert result.exit_code == 2
    assert "no ledger in this database" in " ".join(result.output.split())


def test_a_password_on_the_command_line_is_refused(tmp_path: Path) -> None:
    result = run("init", "--data", str(tmp_path / "d"), "--database", "postgresql://a:geheim@b/c")
    assert result.exit_code == 2
    assert "geheim" not in result.output
    assert "passfile" in result.output
    assert not (tmp_path / "d").exists()
