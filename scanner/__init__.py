"""The scanner: finds deltas that are there already, judges many at once and reports."""
