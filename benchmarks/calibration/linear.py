"""Cases."""

from __future__ import annotations

__all__ = ["CASES", "ESTIMATES"]

CASES = {}
ESTIMATES = {}
