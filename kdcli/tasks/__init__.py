"""One module a task: its supervised loss, its metrics, and what the best student is chosen by."""
