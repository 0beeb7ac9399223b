"""The teacher before and while it teaches: checked, probed, its layer chosen, what was measured kept."""
