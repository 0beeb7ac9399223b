"""One episode: every arm is trained and answers the queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.data import Source
from kdcli.experiments.episode_setting import Setting, episode_images
from kdcli.machine.devices import make_accelerator
from kdcli.runs.folder import RunFolder
from kdcli.terminal.console import errors
from kdcli.terminal.reporters import QuietReporter
from kdcli.training.evaluation import evaluate
from kdcli.training.job import Job
from kdcli.training.teachers.teacher import LiveTeacher
from kdcli.training.trainer import Trainer


def teacher_accuracies(
    support: NDArray[np.float64],
    support_labels: NDArray[np.int64],
    queries: NDArray[np.float64],
    query_labels: NDArray[np.int64],
) -> dict[str, float]:
    """Return what the teacher's features reach without any student.

    All three see L2-normalised features: the label of the nearest support image, the class with the nearest mean (both
    by Euclidean distance), and multinomial logistic regression with an L2 penalty (C = 1).

    Args:
        support: (n, d).
        support_labels: (n,), of at least two classes.
        queries: (m, d).
        query_labels: (m,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    support, queries = normalize(support), normalize(queries)
    classes = np.unique(support_labels)
    means = np.stack([support[support_labels == label].mean(axis=0) for label in classes])
    classifiers = {
        "nearest_neighbour": KNeighborsClassifier(n_neighbors=1).fit(support, support_labels),
        "nearest_class_mean": KNeighborsClassifier(n_neighbors=1).fit(means, classes),
        "linear_classifier": LogisticRegression(C=1.0, max_iter=1000).fit(support, support_labels),
    }
    return {arm: float(np.mean(fitted.predict(queries) == query_labels)) for arm, fitted in classifiers.items()}


class OnceReporter(QuietReporter):
    """Says everything once, however many episodes meet with it."""

    def __init__(self) -> None:
        super().__init__(errors)
        self._said: set[str] = set()

    def warned(self, message: str) -> None:
        """Print the warning, unless it was."""
        if message not in self._said:
            self._said.add(message)
            super().warned(message)

    def skipped(self, name: str) -> None:
        """Name the file, unless it was."""
        if name not in self._said:
            self._said.add(name)
            super().skipped(name)

    def skipped_all(self, names: Iterable[str]) -> None:
        """Name each of the files."""
        for name in names:
            self.skipped(name)


def run_episode(
    setting: Setting, number: int, run: RunFolder, reporter: OnceReporter, *, obey: Callable[[], None]
) -> dict[str, float]:
    """Train and test every arm on one episode; nothing is written.

    Args:
        setting: what all episodes have in common, the teacher on its device.
        number: of the episode.
        run: the folder that training errors refer to.
        reporter: told of warnings and unreadable images.
        obey: called between the arms; raises where a signal asked to stop.

    Returns:
        The accuracy on the queries by arm.

    Raises:
        Stopped: a signal asked for it.
        UserError: training can't go on.
    """
    episode = setting.sampler.draw(number)
    queries = episode_images(setting.queries, episode.queries, len(episode.classes))
    accuracies: dict[str, float] = {}
    for arm, stages in setting.stages.items():
        student = setting.student
        for stage in stages:
            job = setting.job(number, episode, stage, student)
            # One of its own: what a gradient scaler has learnt must not pass from one training to the next.
            accelerator = make_accelerator(job.config.train)
            trainer = Trainer(job, run, accelerator, reporter, writes=False)
            trainer.fit()
            student = trainer.student
        accuracies[arm] = evaluate(job, student, queries, trainer.team, reporter.skipped_all)[job.monitor]
        obey()
    support, support_labels = _embed(setting, job, job.data.train, reporter)
    if lost := set(range(len(episode.classes))) - set(support_labels.tolist()):
        name = job.data.facts.class_names[min(lost)]
        raise UserError(f"Episode {number}: none of the images of {name} can be read.", "Mend or remove them.")
    return accuracies | teacher_accuracies(support, support_labels, *_embed(setting, job, queries, reporter))


def _embed(
    setting: Setting, job: Job, source: Source, reporter: OnceReporter
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the teacher's features (n, d) and the labels (n,) of the images that can be read, without augmentation."""
    teacher = LiveTeacher(setting.teacher, Reads((setting.tap,)))
    device = next(setting.teacher.parameters()).device
    features, labels = [], []
    for batch in job.eval_loader(source, setting.teacher.facts.preprocessing):
        reporter.skipped_all(batch.skipped)
        features.append(teacher(batch.to(device)).features[setting.tap].float().cpu().numpy())
        labels.append(batch.targets.numpy())
    return np.concatenate(features).astype(np.float64), np.concatenate(labels)
