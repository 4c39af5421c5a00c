"""What the four services share: configuration, records, policy text, sessions, gRPC plumbing."""
