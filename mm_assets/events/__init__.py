"""What providers say when an object changed: one parser for each, bytes in, hints out.

Put here: verification and parsing. Keep out: HTTP, databases, and belief: every hint becomes a HEAD.
"""
