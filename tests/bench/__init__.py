"""`make bench`: figures, each against a yardstick of the same run."""
