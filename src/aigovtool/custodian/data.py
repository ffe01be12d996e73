"""
The custodian's data folder, and what configures a server.

    master.key      opens every key in the ledger; keep a copy elsewhere
    ledger.db       the ledger (SQLite), with -wal and -shm beside it, or
    database.url    in which PostgreSQL database it is; may hold a password
    admin.token     opens the admin API
    metrics.token   opens /metrics of it, and nothing else
    admin.url       where the running server's admin API listens
    policy.toml     what evidence new loans accept, unless they are made with another file
    models/         sealed models: ciphertext
    log/            the published transparency log: static files, for everybody
    loan.toml, consumer.key, manifest.toml
                    what `serve --upload` made for borrower and consumer
    server.lock     held by the running server, unless its ledger is in PostgreSQL
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from aigovtool.errors import ConfigurationError

DEFAULT_LISTEN = "127.0.0.1:7000"
DEFAULT_ADMIN_LISTEN = "127.0.0.1:6000"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Where everything is."""

    path: Path

    @property
    def master_key(self) -> Path:
        return self.path / "master.key"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.db"

    @property
    def database_url(self) -> Path:
        return self.path / "database.url"

    @property
    def admin_token(self) -> Path:
        return self.path / "admin.token"

    @property
    def metrics_token(self) -> Path:
        return self.path / "metrics.token"

    @property
    def admin_url(self) -> Path:
        return self.path / "admin.url"

    @property
    def policy(self) -> Path:
        return self.path / "policy.toml"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def ticket(self) -> Path:
        return self.path / "loan.toml"

    @property
    def consumer_key(self) -> Path:
        return self.path / "consumer.key"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.toml"

    @property
    def lock(self) -> Path:
        return self.path / "server.lock"

    def body(self, digest: bytes) -> Path:
        """Where the sealed body of the model with this digest is."""
        return self.models / f"{digest.hex()}.sealed"


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port to listen on; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, option: str) -> Address:
        """Read ``HOST:PORT`` or ``[IPV6]:PORT``; raises ConfigurationError naming *option*."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigurationError(
                f"{option} is not an address", expected="HOST:PORT", came=ascii(text[:80])
            )
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost may be anything."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_unspecified(self) -> bool:
        """Whether it means every address of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """
    Where a server listens.

    Args:
        listen: for enclaves, TLS under the custodian's own key.
        advertise: ``host:port``, or several with commas, that goes into tickets; None for what it
            listens on.
        admin_listen: for the admin API; another than a loopback address needs a certificate.
        admin_certificate, admin_key: PEM files, or None both.
    """

    listen: Address
    advertise: str | None
    admin_listen: Address
    admin_certificate: Path | None = None
    admin_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.admin_certificate is None) != (self.admin_key is None):
            raise ConfigurationError("--admin-tls-certificate and --admin-tls-key belong together")
        if not self.admin_listen.is_loopback and self.admin_certificate is None:
            raise ConfigurationError(
                "the admin API would send its token in the clear over a network",
                code="admin.tls",
                expected="a loopback address",
                came=str(self.admin_listen),
                mend="give --admin-tls-certificate and --admin-tls-key, or listen on 127.0.0.1",
            )
