"""What is run: one distillation, the episodes of middle-shot learning, a sweep."""
