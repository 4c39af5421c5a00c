"""The databroker seen from its clients: the sync cursor, the replica, the client."""
