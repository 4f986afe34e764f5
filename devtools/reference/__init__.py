"""The files that are made from the code."""
