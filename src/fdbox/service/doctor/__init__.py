"""Whether an update would succeed on this machine: gather.py collects facts, the other files judge, checks.py has the table."""
