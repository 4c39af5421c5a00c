"""What a databroker does, as functions from values to values: no I/O, clocks or randomness."""
