"""Dagster's wrappers of plain objects: they turn configuration into clients and stores, and nothing else."""
