"""The proxy's contacts with the outside: Envoy, its sockets and files, and browsers."""
