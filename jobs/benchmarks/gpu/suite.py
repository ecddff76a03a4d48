"""The tests marked gpu as a part of `benchmark.py gpu`: run by pytest, told as one record."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


def run_tests(out: Path, limit: float) -> dict[str, Any]:
    """Run them in a process of their own.

    Args:
        out: gets ``tests.xml`` and ``tests.txt``, what pytest said.
        limit: seconds after which they are ended.
    """
    written = (out / "tests.xml").resolve()
    written.unlink(missing_ok=True)
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={written}"]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    try:
        with open(out / "tests.txt", "w") as said:
            done = subprocess.run(
                command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "why": f"the tests were ended after {limit:.0f} s"}
    if not written.is_file():
        return {"status": "failed", "why": f"pytest ended with code {done.returncode}"}
    return read_results(written.read_text())


def read_results(xml: str) -> dict[str, Any]:
    """A record of pytest's results.

    Args:
        xml: file that ``--junitxml`` writes; the tests are this clone's own.
    """
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    reasons: dict[str, str] = {}
    root = ElementTree.fromstring(xml)
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        kind = "passed"
        for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            found = case.find(tag)
            if found is not None:
                kind = outcome
                reasons[name] = (found.get("message") or "")[:300]
        outcomes[kind].append(name)
    count = {kind: len(names) for kind, names in outcomes.items()}
    status = "failed" if outcomes["failed"] else "done" if outcomes["passed"] else "left out"
    record: dict[str, Any] = {"status": status, **outcomes, "reasons": reasons, "count": count}
    if status != "done":
        names = outcomes["failed"] or outcomes["skipped"]
        record["why"] = f"{names[0]}: {reasons[names[0]]}" if names else "there are no tests"
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    return record | {"seconds": round(seconds, 1)}
