"""Slots, queue, balancing rules, failover and breaker; which worker answers a request."""
