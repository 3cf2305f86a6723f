"""Requests to a workbench in tests."""

import os
import time

TOKEN = "the-token-of-the-pages"
PATIENCE = 3 if "PYTEST_XDIST_WORKER" in os.environ else 1
"""How many times longer than promised something may take: other tests run beside it, each on a core."""


def finished(client, job, seconds=60):
    """A job once it is over."""
    for _ in range(int(seconds / 0.05)):
        now = client.get(f"/api/jobs/{job}").json()
        if now["state"] not in ("waiting", "running"):
            return now
        time.sleep(0.05)
    raise AssertionError(f"the job did not end: {now}")
