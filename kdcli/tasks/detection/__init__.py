"""Finding things in images: boxes with a class each."""
