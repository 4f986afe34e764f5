"""Which deltas are checked: targets, the deltas below them, and a selection of those."""
