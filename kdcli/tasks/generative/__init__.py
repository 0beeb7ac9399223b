"""What the tasks whose students make images have in common."""
