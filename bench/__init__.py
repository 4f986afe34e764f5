"""The scorecard: what Deltaguard and its rivals find in hundreds of damaged deltas, measured against real Chroma."""
