"""As much of Slurm as submitit asks for, on this machine: sbatch, srun, sacct and scontrol.

    python tests/slurm.py COMMAND ARGUMENTS...

An array's jobs run at once, each a session of its own that writes its state to SLURM_FAKE/<job>. `scontrol requeue`
starts a job's script again once its processes are gone.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["SLURM_FAKE"])
ARRAY = "71"


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    (STATE / "script.sh").write_text(text)
    last = re.search(r"#SBATCH --array=0-(\d+)", text)
    for number in range(int(last[1]) + 1 if last else 1):
        start(f"{ARRAY}_{number}")
    print(f"Submitted batch job {ARRAY}")


def start(job: str) -> None:
    """Runs a job's script apart from this process, and notes how it ended."""
    (STATE / job).write_text("RUNNING")
    watch = [sys.executable, __file__, "watch", job]
    nothing = subprocess.DEVNULL  # or whoever reads what sbatch says would wait for the job
    subprocess.Popen(watch, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)


def watch(job: str) -> None:
    task = job.partition("_")[2]
    about = {"SLURM_JOB_ID": str(int(ARRAY) + 1 + int(task)), "SLURM_ARRAY_JOB_ID": ARRAY, "SLURM_ARRAY_TASK_ID": task}
    about |= {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here"}
    about |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    requeue = STATE / f"{job}.requeue"
    while True:
        code = subprocess.run(["bash", STATE / "script.sh"], env={**os.environ, **about}).returncode
        if not requeue.exists():
            break
        requeue.unlink()
    (STATE / job).write_text("COMPLETED" if code == 0 else "FAILED")


def srun(*arguments: str) -> None:
    """Becomes the command, with its output in the files that were asked for."""
    files = {"--output": 1, "--error": 2}
    words = list(arguments)
    while words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        if name in files:
            value = value or words.pop(0)
            for mark, text in (("%A", ARRAY), ("%a", os.environ["SLURM_ARRAY_TASK_ID"]), ("%t", "0")):
                value = value.replace(mark, text)
            Path(value).parent.mkdir(exist_ok=True)  # submitit makes it once it knows the job's number
            os.dup2(os.open(value, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), files[name])
    job = f"{ARRAY}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    (STATE / f"{job}.pid").write_text(str(os.getpid()))
    os.execvp(words[0], words)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for path in STATE.glob(f"{ARRAY}_*"):
        if not path.suffix:
            print(f"{path.name}|{path.read_text()}|here")


def scontrol(verb: str, job: str) -> None:
    assert verb == "requeue"
    (STATE / f"{job}.requeue").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
