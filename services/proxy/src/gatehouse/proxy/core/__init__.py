"""The proxy's decisions: what Envoy is told, in which order, and when it is started again."""
