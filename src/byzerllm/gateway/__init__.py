"""The HTTP surface: OpenAI API on a bare ASGI hot path, the admin API, keys, metrics and listeners."""
