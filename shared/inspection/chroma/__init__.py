"""What Chroma keeps in the database of a delta: collections, segments, rows, and the queue."""
