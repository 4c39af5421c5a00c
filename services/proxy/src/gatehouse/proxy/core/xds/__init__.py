"""Envoy resources and the delta discovery protocol, as values and state machines."""
