"""One module a task: its supervised loss, its metrics, and what the best student is chosen by."""

from kdcli.tasks.base import Task, build_task, rank_students

__all__ = ["Task", "build_task", "rank_students"]
