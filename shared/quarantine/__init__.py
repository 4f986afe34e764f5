"""The quarantine protocol: into quarantine, back to its place, or gone for good."""
