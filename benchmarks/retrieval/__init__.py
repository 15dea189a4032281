"""How transmission matrices are recovered, side by side: `python -m benchmarks.retrieval`."""
