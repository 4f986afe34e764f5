"""What Deltaguard and its rivals find (`bench.scorecard`, against real Chroma); what it costs (`python -m bench`)."""
