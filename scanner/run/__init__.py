"""Many deltas checked at once: workers, throttle, checkpoint, and what is done about a verdict."""
