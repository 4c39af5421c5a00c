"""Builders of single Envoy resources: pure functions from settings to protobuf messages."""
