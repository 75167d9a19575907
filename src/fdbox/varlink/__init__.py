"""Varlink with descriptors, sans-IO: bytes and descriptors in, calls and replies out."""
