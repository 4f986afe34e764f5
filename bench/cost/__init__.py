"""What it costs: every figure as a ratio to a named alternative in the same run."""
