"""Models of transformers: of images, of texts, over tokens."""
