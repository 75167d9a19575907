"""Boxes across an incarnation: seal.py saves them, arrive.py takes them out again, carriers/ bring them over."""
