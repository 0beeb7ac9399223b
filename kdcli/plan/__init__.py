"""What a run will do and why, decided before anything is trained. Imports no torch."""
