"""The service: requests in, answers out, and what stands between them and the engine. Knows bytes, not models."""
