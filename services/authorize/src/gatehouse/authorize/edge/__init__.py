"""Where authorize meets Envoy, the databroker and the log."""
