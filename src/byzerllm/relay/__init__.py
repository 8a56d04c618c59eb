"""Upstream connections: pool, TLS, proxy and the four timeouts."""
