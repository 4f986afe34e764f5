"""What Deltaguard and its rivals find (`bench.score`, against real Chroma), and what it costs (`bench.cost`)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: where the programs of a bench are found."""
