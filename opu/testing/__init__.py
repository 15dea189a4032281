"""What a driver is tested with: the conformance suite."""

from opu.testing.conformance import CHECKS, CheckResult, fingerprint, run_checks

__all__ = ["CHECKS", "CheckResult", "fingerprint", "run_checks"]
