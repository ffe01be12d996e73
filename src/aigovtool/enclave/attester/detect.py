"""
Which TEE is this? Look, say what was found, and say why one was chosen.

The most specific door comes first: a library OS or an enclave image answers for itself, Azure's
vTPM is preferred to what the guest's kernel may offer beside it, configfs-tsm to the devices that
it replaces, and the simulated platform is taken only when no hardware is found. A machine with
several doors is no error; the choice says so. GPUs are a door only together with a confidential VM,
and taken only when they are asked for: most policies are about the machine alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aigovtool.attestation.evidence import Tee
from aigovtool.clock import Clock
from aigovtool.enclave.attester.azure import AzureAttester, azure_tee
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.attester.composite import CPU_TEES, CompositeAttester
from aigovtool.enclave.attester.gramine import GRAMINE_ATTESTATION, GramineAttester
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.enclave.attester.nitro import NSM, NitroAttester
from aigovtool.enclave.attester.nvidia import NVIDIA_CONTROL, NvidiaAttester
from aigovtool.enclave.attester.sev_guest import SEV_GUEST, SevGuestAttester
from aigovtool.enclave.attester.simulated import SimulatedAttester
from aigovtool.enclave.attester.tdx_guest import TDX_GUEST, TdxGuestAttester
from aigovtool.enclave.attester.tpm import TPM_RESOURCE_MANAGER, Tpm
from aigovtool.enclave.attester.tsm import PROVIDERS, TSM_REPORTS, TsmAttester
from aigovtool.errors import AIGovToolError, ConfigurationError

CHASSIS_TAG = Path("/sys/class/dmi/id/chassis_asset_tag")
AZURE_CHASSIS_TAG = b"7783-7084-3265-9085-8269-3286-77"  # on every Azure VM, and nowhere else


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """
    Args:
        attester: the one to use.
        found: every door that was found, in order of preference.
        why: one line for people.
    """

    attester: Attester
    found: tuple[str, ...]
    why: str


def choose(
    tee: Tee | None, *, clock: Clock, kernel: Kernel | None = None, tpm: Tpm | None = None
) -> Choice:
    """
    Choose the attester for *tee*, or for whatever this machine has when it is None.

    Raises:
        ConfigurationError: the TEE asked for is not here, or there is none at all.
    """
    doors = _doors(kernel or Kernel(), tpm or Tpm())
    found = tuple(f"{kind} by {where}" for kind, where, _ in doors)
    for kind, where, make in doors:
        if tee in (None, kind):
            others = len(doors) - 1
            why = f"{kind} was asked for" if tee else f"{where} is there"
            if not tee and others:
                why += f", and comes before {others} more"
            return Choice(attester=make(), found=found, why=why)
    if tee in (None, Tee.SIMULATED):
        why = "it was asked for" if tee else "no TEE was found on this machine"
        return Choice(attester=SimulatedAttester.open(clock=clock), found=found, why=why)
    raise ConfigurationError(
        f"this machine offers no {tee}",
        code="attester.none",
        came=", ".join(found) or "no TEE at all",
        mend="start with --tee auto, or inside the TEE that the loan asks for",
    )


def _doors(kernel: Kernel, tpm: Tpm) -> list[tuple[Tee, Path, Callable[[], Attester]]]:
    doors: list[tuple[Tee, Path, Callable[[], Attester]]] = []
    if kernel.exists(GRAMINE_ATTESTATION / "attestation_type"):
        doors.append((Tee.SGX, GRAMINE_ATTESTATION, lambda: GramineAttester(kernel=kernel)))
    if kernel.exists(NSM):
        doors.append((Tee.NITRO, NSM, lambda: NitroAttester(kernel=kernel)))
    if (azure := _azure(kernel, tpm)) is not None:
        doors.append((azure, TPM_RESOURCE_MANAGER, lambda: AzureAttester(azure, tpm=tpm)))
    if (provided := _tsm_provider(kernel)) is not None:
        doors.append((provided, TSM_REPORTS, lambda: TsmAttester(provided, kernel=kernel)))
    if kernel.exists(SEV_GUEST):
        doors.append((Tee.SNP, SEV_GUEST, lambda: SevGuestAttester(kernel=kernel)))
    if kernel.exists(TDX_GUEST):
        doors.append((Tee.TDX, TDX_GUEST, lambda: TdxGuestAttester(kernel=kernel)))
    cpu = next((make for kind, _, make in doors if kind in CPU_TEES), None)
    if cpu is not None and kernel.exists(NVIDIA_CONTROL):
        doors.append(
            (Tee.COMPOSITE, NVIDIA_CONTROL, lambda: CompositeAttester(cpu(), NvidiaAttester()))
        )
    return doors


def _azure(kernel: Kernel, tpm: Tpm) -> Tee | None:
    """Ask the vTPM, on Azure alone, which hardware the paravisor has a report of."""
    if not kernel.exists(CHASSIS_TAG) or not kernel.exists(TPM_RESOURCE_MANAGER):
        return None
    try:
        if kernel.read(CHASSIS_TAG).strip() != AZURE_CHASSIS_TAG:
            return None
        return azure_tee(tpm)
    except AIGovToolError:
        return None  # an ordinary VM, or one whose vTPM this user may not use


def _tsm_provider(kernel: Kernel) -> Tee | None:
    """Ask configfs-tsm whom it speaks for; a report directory is the only way to ask."""
    if not kernel.exists(TSM_REPORTS):
        return None
    folder = TSM_REPORTS / f"aigovtool-{secrets.token_hex(8)}"
    try:
        kernel.mkdir(folder)
        try:
            provider = kernel.read(folder / "provider").decode("ascii", "replace").strip()
        finally:
            kernel.rmdir(folder)
    except AIGovToolError:
        return None  # mounted, with no provider behind it
    return PROVIDERS.get(provider)
