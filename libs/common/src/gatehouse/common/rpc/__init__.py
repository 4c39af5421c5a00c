"""gRPC plumbing: servers, balanced channels, service credentials, health."""
