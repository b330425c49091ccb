"""Fuzz for some minutes: `python3 fuzz/run.py --minutes 60 [--jobs 2]`; `python3 fuzz/run.py FILE` repeats one finding.

The corpus in `.fuzz/corpus` grows and is kept.  `.fuzz/findings` has each finding: the input file, and the report about it.
Exit status: 0 no findings, 1 findings, 2 fuzzing failed to run.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import setup_env

WORK = setup_env.CHECKOUT / ".fuzz"
CORPUS, FINDINGS, LOGS = WORK / "corpus", WORK / "findings", WORK / "logs"
TARGET = setup_env.FUZZ / "target.py"
ROUND_SECONDS = 600
LIMITS = ["-timeout=20", "-rss_limit_mb=3000", "-malloc_limit_mb=1000"]
OPTIONS = [*LIMITS, "-max_len=131088", "-len_control=0", "-report_slow_units=1000", "-reload=1"]


class Job:
    """One fuzzing process, which is restarted when it ends."""

    def __init__(self, number, python, environment):
        self.number, self.python, self.environment = number, python, environment
        self.process, self.rounds, self.executions = None, 0, 0
        self.log = LOGS / f"job-{number}.log"

    def start(self, seconds):
        """Start the process, which reads the corpus and then fuzzes for the given time."""
        self.rounds += 1
        self.began = time.monotonic()
        self.prefix = WORK / f"job-{self.number}-"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [self.python, TARGET, *OPTIONS, f"-max_total_time={seconds:.0f}", f"-artifact_prefix={self.prefix}", CORPUS],
                stdout=log, stderr=log, env=self.environment, cwd=WORK,
            )  # fmt: skip

    def end(self):
        """Count the executions of a process that has ended; return its output and its last line of statistics."""
        text = self.log.read_text(errors="replace")
        counts = re.findall(r"^#(\d+)\s", text, re.MULTILINE)
        self.executions += int(counts[-1]) if counts else 0
        lines = re.findall(r"cov: \d+ ft: \d+ corp: \S+", text)
        return text, lines[-1] if lines else ""


def key_of(text):
    """Return what distinguishes findings: the kind of error, and the innermost place in this library."""
    kind = re.search(r"ERROR: \w+: [\w-]+|runtime error: .*|^[\w.]+(?:Error|Exception|Finding|Warning)\b", text, re.MULTILINE)
    frames = re.findall(r"^ +#\d+ \S+ in (\w+)[^\n]*shmem", text, re.MULTILINE)
    frames = frames or [f"{place}:{line}" for place, line in re.findall(r'File "(\S*shmem/\S+)", line (\d+)', text)[::-1]]
    return kind.group() if kind else "process ended", " in ".join(frames[:3])


def keep_findings(job, text):
    """Move the files that libFuzzer wrote to the findings; return the new files."""
    kept = []
    for path in sorted(WORK.glob(f"job-{job.number}-*")):
        kind, where = key_of(text)
        number = hashlib.sha256((kind + where).encode()).hexdigest()[:12]
        target = FINDINGS / f"{path.name.split('-')[2]}-{number}"
        if target.exists():
            path.unlink()
            setup_env.say(f"found again: .fuzz/findings/{target.name}")
        else:
            shutil.move(path, target)
            target.with_suffix(".txt").write_text(text[-60000:])
            setup_env.say(f"FOUND {kind} {where}: .fuzz/findings/{target.name}")
            kept.append(target)
    return kept


def fuzz(python, minutes, n_jobs, environment):
    """Run the jobs until the time is over; return the number of findings."""
    for folder in (CORPUS, FINDINGS, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    for path in WORK.glob("job-*"):
        path.unlink()
    if subprocess.run([python, TARGET, "--corpus", CORPUS], env=environment, check=False).returncode != 0:
        raise SystemExit(2)
    jobs = [Job(i, python, environment) for i in range(n_jobs)]
    began, found, last, idle = time.monotonic(), 0, "", 0
    end = began + 60 * minutes
    try:
        while time.monotonic() < end or any(job.process for job in jobs):
            for job in jobs:
                if job.process is None and time.monotonic() < end - 1:
                    job.start(min(ROUND_SECONDS, end - time.monotonic()))
                elif job.process is not None and job.process.poll() is not None:
                    text, line = job.end()
                    kept = keep_findings(job, text)
                    failed = job.process.returncode != 0
                    found += failed
                    idle = idle + 1 if failed and time.monotonic() - job.began < 30 else 0
                    last, job.process = line or last, None
                    total = sum(one.executions for one in jobs)
                    seconds = time.monotonic() - began
                    setup_env.say(f"{seconds / 60:.1f} minutes, {total:,} executions ({total / seconds:.0f}/s), {last}, found {found}")
                    if failed and not kept and "==" not in text:
                        print(text[-3000:], file=sys.stderr)
            if idle > 20:
                setup_env.say("the fuzzing process fails repeatedly at its start; see .fuzz/logs")
                break
            time.sleep(0.5)
    finally:
        for job in jobs:
            if job.process is not None:
                job.process.send_signal(signal.SIGTERM)
                job.process.wait()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="the finding to repeat")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # leave nothing behind
    python = setup_env.prepare()
    with tempfile.TemporaryDirectory(prefix="shmem-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        environment = setup_env.target_environment() | {"SHMEM_FUZZ_FOLDER": folder}
        if options.file:
            return int(subprocess.run([python, TARGET, *LIMITS, options.file], env=environment, check=False).returncode != 0)
        return int(fuzz(python, options.minutes, options.jobs, environment) > 0)


if __name__ == "__main__":
    sys.exit(main())
