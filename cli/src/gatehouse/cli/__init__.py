"""The `gatehouse` command: the one place that may know all four services."""
