"""Images: from files, tables and data sets to batches of canvases."""
