"""Maps from the student's features to the teacher's, the Stiefel manifold, and their spectra."""
