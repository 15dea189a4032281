"""What a driver is tested with: the conformance suite; and what whatever uses a driver is: a device that goes wrong."""

from opu.testing.conformance import CHECKS, CheckResult, fingerprint, run_checks
from opu.testing.faulty import Faults, FaultyDevice

__all__ = ["CHECKS", "CheckResult", "Faults", "FaultyDevice", "fingerprint", "run_checks"]
