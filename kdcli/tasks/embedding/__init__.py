"""The teacher's embeddings of images or texts themselves."""
