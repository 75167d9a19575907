"""The kinds of descriptors: how each is recognised, described, saved and made again. One file a kind."""
