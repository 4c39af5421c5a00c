"""Deciding about one request: plain functions from values to values, without I/O or clocks."""
