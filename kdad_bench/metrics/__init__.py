"""Anomaly maps and scores in, numbers out: exact metrics, their formulas and the index of defect regions."""
