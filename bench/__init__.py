"""What Deltaguard and its rivals find (`bench.score`, against real Chroma), and what it costs (`bench.cost`)."""
