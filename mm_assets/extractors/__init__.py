"""Segments → features: one module for each model family, one registry that knows them all."""
