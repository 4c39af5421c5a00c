"""The databroker seen from its clients.

records.py makes and opens records; client.py makes calls; sync_core.py decides how a copy follows
the broker; replica.py holds the copy; syncer.py performs what the core decides.
"""
