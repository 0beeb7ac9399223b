"""Models of segmentation-models-pytorch: an encoder, a decoder, and a head for every pixel."""
