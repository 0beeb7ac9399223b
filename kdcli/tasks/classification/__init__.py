"""Classes, several labels or numbers, of images and of texts."""
