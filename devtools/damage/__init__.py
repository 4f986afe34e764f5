"""Deltas made by the real Chroma, and every way they are known to break."""
