"""Images that are to become other images: with pairs and without."""
