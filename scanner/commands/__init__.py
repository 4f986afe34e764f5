"""The commands of `deltaguard`, a file each."""
