"""Chroma itself reads a copy of a delta, in a child process."""
