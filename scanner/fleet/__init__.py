"""A scan by many functions at once, through Step Functions."""
