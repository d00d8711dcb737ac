"""Reproduce every table: data sets x methods x seeds -> run folders -> results/summary.csv -> tables and figures.

    python reproduce_tables.py                                  # AWA2, CUB, SUN from data/
    python reproduce_tables.py --datasets DEMO                  # the drawn data set, no download
    python reproduce_tables.py --data-root ROOT --datasets CUB  # any folder laid out like the data sets

    python reproduce_tables.py --status                         # the jobs by number: done, running, begun, not begun
    python reproduce_tables.py --task 3                         # one of them alone, for job arrays
    python reproduce_tables.py --collect                        # tables of the runs that are done

A finished run is never repeated: repeat the command after an interruption. --jobs runs that many at a time. A run that
fails is a line of the report, the others go on, and the exit code is 2.
"""

from core.commands.reproduce import main
from core.files.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main, __doc__))
