"""Labels of the words of texts."""
