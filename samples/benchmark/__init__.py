"""The parts of ``bench.py``.

``http`` (bytes), ``plan`` (what to do), ``client`` (one process of connections), ``load`` (all of
them), ``report`` (numbers), ``peers`` (what the other servers are), ``servers`` (running them),
``compare`` (measuring and tables).
"""
