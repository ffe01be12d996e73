"""Evidence from the software platform: it protects nothing from the owner of this machine."""

from __future__ import annotations

from pathlib import Path

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.simulated import WARNING
from aigovtool.clock import Clock
from aigovtool.simulation.measure import Measurement, measure
from aigovtool.simulation.platform import SimulatedPlatform, platform_directory


class SimulatedAttester:
    """
    Quotes of a `SimulatedPlatform`, with the measurement of the code that runs.

    Args:
        platform: whose root the policy names.
        clock: for the collateral.
        measurement: taken once, at start, as hardware does; None measures this process.
    """

    def __init__(
        self,
        platform: SimulatedPlatform,
        *,
        clock: Clock,
        measurement: Measurement | None = None,
    ) -> None:
        self._platform = platform
        self._clock = clock
        self.measurement = measurement or measure()

    @classmethod
    def open(cls, *, clock: Clock, directory: Path | None = None) -> SimulatedAttester:
        """Use the platform in *directory*; raises ConfigurationError when there is none."""
        return cls(SimulatedPlatform.load(directory or platform_directory()), clock=clock)

    @property
    def tee(self) -> Tee:
        return Tee.SIMULATED

    def describe(self) -> str:
        return WARNING

    def evidence(self, report_data: bytes) -> Evidence:
        quote = self._platform.quote(self.measurement.mr_td, report_data)
        return Evidence(tee=Tee.SIMULATED, documents={QUOTE: quote})

    def endorsements(self) -> Endorsements:
        return self._platform.endorsements(self._clock.now())
