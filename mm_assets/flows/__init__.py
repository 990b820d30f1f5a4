"""Where I/O and compute meet: discovery, processing, publishing, refresh. Plain functions, no Dagster.

Put here: the order of reads, work and writes. Keep out: what one library does, and how runs are started.
"""
