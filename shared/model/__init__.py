"""Plain values, no I/O: delta, manifest, verdict, findings, settings, errors."""
