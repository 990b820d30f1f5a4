"""Dagster's declarations of assets, in the order in which data flows; the core computes."""
