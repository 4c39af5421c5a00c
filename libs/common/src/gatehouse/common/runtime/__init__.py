"""The life of a process: context, lifecycle, supervision, probes."""
