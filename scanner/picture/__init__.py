"""One delta drawn for `deltaguard inspect`."""
