"""Flattened device trees: the format of the manifest and of every component."""
