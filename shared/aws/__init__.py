"""Other services of AWS: messages, events, metrics, and policies."""
