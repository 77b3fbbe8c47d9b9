"""Batching: which jobs go together, when, and to which worker."""
