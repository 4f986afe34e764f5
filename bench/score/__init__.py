"""What is found: deltas broken in every way that is known, beside Chroma's own answer and three rivals."""
