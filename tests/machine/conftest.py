"""Two processes that are forked before anything of torch runs, so that torch is imported once."""

import subprocess
import sys

import pytest

FORK = """
if __name__ == "__main__":
    other = os.fork()
    rank = 0 if other else 1
    try:
        work(rank, sys.argv[1])
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    if rank == 0:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
    os._exit(0)
"""


@pytest.fixture
def run_forked(tmp_path):
    """A function that runs a script which defines ``work(rank, file)``, ``file`` being where the processes meet."""

    def run(script):
        file = tmp_path / "work.py"
        file.write_text("import os, sys\n" + script + FORK)
        done = subprocess.run([sys.executable, str(file), str(tmp_path / "meet")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
