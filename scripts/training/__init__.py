"""How the models of the demo pack are trained: one program per model, on media that `world` draws and speaks.

Put here: the recipes that led to the shipped weights, and what they have in common.
Keep out: drawings and sentences (world), anything the product imports, the laying out of packs (build_pack).
"""

from mm_assets.extractors.offline import go_offline

# The model libraries read their switches when they are imported, which the modules of this package do.
go_offline()
