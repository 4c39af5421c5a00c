"""The proxy service: it runs Envoy and tells it what to do.

Owns the data plane: it turns the settings into Envoy resources (`core/xds`), serves them over a
delta ADS stream on a Unix socket, starts, watches and drains the Envoy process beside it, and
answers Gatehouse's own pages behind it (`edge/http_endpoints.py`).

RPCs served: `envoy.service.discovery.v3.AggregatedDiscoveryService` (delta only), to its own Envoy
and nobody else. RPCs called: the databroker's `Get` and leases, for the pages. Records read:
sessions and users; records written: none.
"""
