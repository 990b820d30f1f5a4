"""The small server of ``mm serve``: receivers of events, uploads, health and metrics.

Put here: HTTP in and out. Keep out: what is done with it, which is the flows' and the ledger's.
"""
