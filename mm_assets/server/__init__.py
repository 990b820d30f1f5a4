"""The small server of ``mm serve``: search, what is known of objects, receivers of events, uploads, health, metrics.

Put here: HTTP in and out. Keep out: what is done with it, which is the flows' and the ledger's.
"""
