"""The local stack: real deltas, real damage, the demo."""
