"""Logs (and, in time, metrics and traces)."""
