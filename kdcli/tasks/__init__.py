"""One module a task: its supervised loss, its metrics, and what the best student is chosen by."""

from kdcli.tasks.base import Task, rank_students
from kdcli.tasks.registry import build_task, task_class

__all__ = ["Task", "build_task", "rank_students", "task_class"]
