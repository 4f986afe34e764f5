"""From a delta's place to its verdict."""
