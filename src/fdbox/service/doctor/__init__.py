"""Whether an update would succeed on this machine: facts.py gathers, checks.py judges."""
