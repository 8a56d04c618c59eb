"""The HTTP client of the background server: it finds the server, starts it and speaks to its admin API."""
