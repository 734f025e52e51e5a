"""Processes, listeners, TLS, signals."""
