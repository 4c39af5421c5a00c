"""Try Gatehouse on this machine: four services, a development identity provider, an application.

Everything here is for a person's own machine: it listens on loopback only, its certificates are
good for *.localhost only, and its identity provider believes whoever presses a button.
"""
