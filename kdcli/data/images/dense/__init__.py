"""Images with targets at places: masks, depth and boxes, in the forms in which they lie on disk."""
