"""Texts: from files to batches of texts, of words with labels and of tokens."""
