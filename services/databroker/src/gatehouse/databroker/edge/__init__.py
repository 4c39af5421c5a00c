"""Where the databroker touches the outside: gRPC, storage, time."""
