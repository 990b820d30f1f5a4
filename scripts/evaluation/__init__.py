"""What the published tables say, measured against what is true of the media.

Put here: one module per kind of truth; rows and truth in, figures out.
Keep out: running the pipeline and reading its tables (the command `evaluate`), and any model.
"""
