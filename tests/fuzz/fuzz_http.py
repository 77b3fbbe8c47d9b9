#!/usr/bin/env python3
"""Fuzz the HTTP connections: ``python tests/fuzz/fuzz_http.py -max_total_time=30``."""

from fuzzing import main

if __name__ == "__main__":
    main("http")
