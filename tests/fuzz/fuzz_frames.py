#!/usr/bin/env python3
"""Fuzz both ends of the wire protocol: ``python tests/fuzz/fuzz_frames.py -max_total_time=30``."""

from fuzzing import main

if __name__ == "__main__":
    main("frames")
