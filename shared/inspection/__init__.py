"""Bytes in, findings out. Knows the format of a delta, nothing of S3, and writes to nothing it is given."""
