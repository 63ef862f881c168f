"""The right wing: rows, the store, summaries and everything drawn from them. Never imports torch."""
