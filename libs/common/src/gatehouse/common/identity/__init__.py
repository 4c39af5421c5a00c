"""Identity providers: discovery, tokens, claims. Shared by authenticate and session refresh."""
