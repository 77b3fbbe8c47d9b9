"""Serve a Python model over HTTP."""
