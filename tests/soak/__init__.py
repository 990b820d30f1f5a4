"""The soak: real flows in many processes that are killed at random, then a checker that looks at all that is left.

Put here: ``python -m soak.run`` (with ``tests`` on the path) and its short form as a test. Keep out: single faults, each
of which has a test of its own.
"""
