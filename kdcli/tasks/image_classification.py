"""The name by which other packages' tasks know the classification of images."""

from kdcli.tasks.classification.one_label import ImageClassification

__all__ = ["ImageClassification"]
