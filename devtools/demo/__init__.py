"""The chunk-40 incident on this machine: as it was, and as it is now."""
