"""Kinds: samples of each (one file a kind), and one set of cases that all of them go through (conformance.py)."""
