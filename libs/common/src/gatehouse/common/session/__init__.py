"""Session handles, login bindings and cookies."""
