"""Decisions of the sign-in and sign-out flows: values in, values out."""
