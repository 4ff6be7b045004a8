"""Measured claims, each a command: `python -m bench.NAME [--quick]`.

Figures are ratios of what was measured side by side in one run, and a run checks its own
counts. The last line that a benchmark prints is one JSON object. Nothing here is a test.
"""
