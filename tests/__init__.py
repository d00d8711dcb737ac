"""The tests; one thread for each process, as there is a process for each core (make test)."""

import os

# before PyTorch is imported, and for the processes that tests start: threads of several processes on the same cores
# wait for each other longer than they compute
os.environ.setdefault("OMP_NUM_THREADS", "1")
