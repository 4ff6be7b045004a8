"""Models that a service elsewhere trains and serves.

The artifact of such a version holds no weights: it says which model of which service it is
(model.py). Everything else about a version is as for a local one: lineage, gate, rollback.
"""
