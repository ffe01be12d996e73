"""
The appraisal policy: `manifest.toml`, read once into the narrowest types.

Rule 1: evidence is accepted when all rules of ONE alternative (``[[accept]]``) of its TEE hold.
Rule 2: a field that is missing, unknown or of a wrong form is an error that names its path and says
        what to write; all of them are listed at once.
Rule 3: nothing has a default. What is free says so (``"any"``).

    version = 1

    [custodian]                  # who holds the loan; the client demands this table
    public_key = "ed25519:…"
    loan = "loan_…"

    [[accept]]
    tee = "tdx"
    mr_td = ["91eb2b44…"]
    …
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, get_type_hints

import msgspec
import tomli_w
from msgspec import Meta, Struct

from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.kinds import KINDS
from aigovtool.crypto.signing import format_public_key, parse_public_key
from aigovtool.errors import ConfigurationError, MalformedError, Reason
from aigovtool.ids import LoanId

MAX_POLICY_BYTES = 1 << 20
MAX_ALTERNATIVES = 64

Alternative = Struct
"""One acceptable kind of evidence: the policy struct of one of `KINDS`, tagged with its TEE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """
    Who holds the loan: the enclave must serve exactly this one.

    Args:
        public_key: 32 bytes, Ed25519.
        loan: its identifier.
    """

    public_key: bytes
    loan: LoanId


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    An appraisal policy.

    Args:
        accept: the alternatives, in the file's order; at least one.
        custodian: None in a policy that is for evidence alone.
    """

    accept: tuple[Alternative, ...]
    custodian: Custodian | None

    def require_custodian(self) -> Custodian:
        """Return the custodian; raises ConfigurationError when the policy names none."""
        if self.custodian is None:
            raise ConfigurationError(
                "the policy does not say whose loan the enclave must serve",
                code="policy.custodian",
                expected="a table [custodian] with public_key and loan",
                mend="take the manifest.toml that the custodian gave you",
            )
        return self.custodian


T = TypeVar("T", bound=Struct)
# One entry of a docstring's "Args:" after cleandoc: four spaces, name, colon, indented text.
_ARGUMENT = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


class _CustodianTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    public_key: Annotated[str, Meta(description='the custodian\'s key, "ed25519:…"')]
    loan: Annotated[str, Meta(min_length=1, description="the loan's identifier")]


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Annotated[Literal[1], Meta(description="1")]
    accept: Annotated[
        tuple[dict[str, object], ...],
        Meta(
            min_length=1,
            max_length=MAX_ALTERNATIVES,
            description="one or more tables [[accept]], each with its tee",
        ),
    ]
    custodian: dict[str, object] | None = None


# their definitions are read here, where nobody else runs: see `wire.codec`
for _kind in (_CustodianTable, _File, *(known.policy for known in KINDS.values())):
    msgspec.json.Decoder(_kind)


def parse_policy(text: bytes) -> Policy:
    """
    Read a policy.

    Raises:
        ConfigurationError: not TOML, or rule 2; one reason for each field.
    """
    if len(text) > MAX_POLICY_BYTES:
        raise ConfigurationError(
            "policy too large",
            code="policy.size",
            expected=f"at most {MAX_POLICY_BYTES} bytes",
            came=f"{len(text)} bytes",
        )
    try:
        document = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(
            "the policy is not TOML", code="policy.toml", came=str(error)
        ) from None
    file = _convert(document, _File, path="")
    custodian = None
    reasons: list[Reason] = []
    if file.custodian is not None:
        try:
            named = _convert(file.custodian, _CustodianTable, path="custodian.")
            custodian = Custodian(
                public_key=parse_public_key(named.public_key), loan=LoanId(named.loan)
            )
        except (ConfigurationError, MalformedError) as error:
            reasons += error.reasons
    alternatives = []
    for position, table in enumerate(file.accept):
        try:
            alternatives.append(_alternative(table, path=f"accept[{position}]."))
        except ConfigurationError as error:
            reasons += error.reasons
    if reasons:
        raise ConfigurationError(reasons[0], others=reasons[1:])
    return Policy(accept=tuple(alternatives), custodian=custodian)


def write_policy(policy: Policy, *, preface: str = "") -> str:
    """
    Write *policy* as TOML that `parse_policy` reads back, each field with what it means.

    Args:
        preface: lines for the top of the file, without the comment sign.
    """
    lines = [f"# {line}".rstrip() for line in preface.splitlines()]
    lines += ["version = 1", ""]
    if policy.custodian is not None:
        lines += [
            "[custodian]",
            _line("public_key", format_public_key(policy.custodian.public_key)),
            _line("loan", policy.custodian.loan),
            "",
        ]
    for alternative in policy.accept:
        lines += ["[[accept]]", *_table("accept", alternative), ""]
    return "\n".join(lines)


def _table(path: str, table: Struct | Mapping[str, object]) -> list[str]:
    """Write the fields of a table, and after them, as TOML demands, the tables inside it."""
    meanings = _meanings(type(table)) if isinstance(table, Struct) else {}
    lines: list[str] = []
    inner: list[str] = []
    for name, plain in msgspec.to_builtins(table).items():
        meaning = [f"# {meanings[name]}"] if name in meanings else []
        if isinstance(plain, dict):
            value = getattr(table, name) if isinstance(table, Struct) else plain
            header = f"{path}.{_key(name)}"
            inner += ["", *meaning, f"[{header}]", *_table(header, value)]
        else:
            lines += [*meaning, _line(name, plain)]
    return lines + inner


def _key(name: str) -> str:
    return _line(name, 0).removesuffix(" = 0")  # quoted where TOML wants it


def _line(name: str, value: object) -> str:
    return tomli_w.dumps({name: value}).rstrip("\n")


def _alternative(table: Mapping[str, object], *, path: str) -> Alternative:
    tee = table.get("tee")
    if tee not in list(KINDS):
        raise ConfigurationError(
            f"{path}tee does not name a known TEE",
            code="policy.tee",
            expected=" or ".join(f'"{name}"' for name in KINDS),
            came=repr(tee) if isinstance(tee, str) else "nothing" if tee is None else "no text",
            mend="say which kind of evidence this table is about",
        )
    return _convert(table, KINDS[Tee(str(tee))].policy, path=path)


def _convert(table: Mapping[str, object], kind: type[T], *, path: str) -> T:
    """Turn *table* into *kind*, or raise ConfigurationError with every field that is wrong."""
    config = kind.__struct_config__
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    given = set(table) - ({config.tag_field} if config.tag_field else set())
    meanings = _meanings(kind)
    reasons = [
        Reason(
            code="policy.missing",
            message=f"{path}{name} is missing",
            expected=meanings.get(name),
            came="nothing",
            mend=f"write {name} = …: what is free must say so",
        )
        for name, field in fields.items()
        if field.required and name not in given
    ]
    reasons += [
        Reason(
            code="policy.unknown",
            message=f"{path}{name} is not a field of this table",
            expected=", ".join(fields),
            came=name,
            mend="correct the name, or remove the line",
        )
        for name in sorted(given - set(fields))
    ]
    for name in sorted(given & set(fields)):
        try:
            msgspec.convert(table[name], fields[name].type)
        except msgspec.ValidationError as error:
            reasons.append(
                Reason(
                    code="policy.value",
                    message=f"{path}{name} has a wrong value",
                    expected=meanings.get(name),
                    came=str(error),
                    mend=f"write {name} as its meaning says",
                )
            )
    if reasons:
        raise ConfigurationError(reasons[0], others=reasons[1:])
    return msgspec.convert(table, kind)


def _meanings(kind: type[Struct]) -> dict[str, str]:
    """Return what each field of *kind* means: its `Meta.description`, or the docstring's line."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Meta) and extra.description:
                found[name] = extra.description
    for base in kind.__mro__:
        for name, text in _ARGUMENT.findall(inspect.cleandoc(base.__doc__ or "")):
            found.setdefault(name, " ".join(text.split()))
    return found
