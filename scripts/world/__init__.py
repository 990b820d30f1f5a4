"""The drawn and spoken world of the demo: every picture, sound and page is made by code that knows the truth about it.

Put here: generators of media and of the truth about them, deterministic given a seed.
Keep out: anything the product imports, anything that reads a model or measures one.
"""
