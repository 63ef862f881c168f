"""Mutated inputs of every kind against the product itself: `python -m tests.fuzz --count 5000 --seed 0`."""
