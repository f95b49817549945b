"""What holds for every test."""

import os

# One compute thread, here and in the processes that tests start: the networks are tiny, and threads
# that fight over two cores cost far more than they bring. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
