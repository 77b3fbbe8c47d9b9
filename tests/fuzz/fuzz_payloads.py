#!/usr/bin/env python3
"""Fuzz what reads payloads: ``python tests/fuzz/fuzz_payloads.py -max_total_time=30``."""

from fuzzing import main

if __name__ == "__main__":
    main("payloads")
