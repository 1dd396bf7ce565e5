"""Scripts for text classification."""
