"""The databroker: a versioned log of typed records with a queryable head.

Owns: every record, its versions, the change log, type options and leases; where they are kept
(memory, a SQLite directory, PostgreSQL) and for how long.
Serves: databroker.DataBrokerService and databroker.CheckpointService.
Records: all types are read and written on behalf of the other services; it writes none of its own
account but tombstones (capacity and time to live).
"""
