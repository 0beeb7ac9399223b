"""torchvision's detectors as a library of models."""
