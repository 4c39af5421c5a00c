"""Settings: the model of Pomerium's keys, how they are loaded, resolved and changed."""
