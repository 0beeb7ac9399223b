"""What finished runs and models are worth: evaluations, comparisons, pictures, exports, cards."""
