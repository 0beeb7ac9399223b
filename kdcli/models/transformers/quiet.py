"""Importing this keeps transformers from writing between kdcli's own lines: every module that imports it does so.

What is wrong with a model is the one message of its error.
"""

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

disable_progress_bar()
set_verbosity_error()
