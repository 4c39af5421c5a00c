"""The three stores behind the one storage contract of `base.py`."""
