"""Where authenticate touches the outside: HTTP, the databroker, the identity provider."""
