"""What the bytes of a damaged delta still prove."""
