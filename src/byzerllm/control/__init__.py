"""Desired state, actual state and the loop that closes the gap."""
