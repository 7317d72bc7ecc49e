"""What sbatch, srun and scontrol do with a script, on this machine.

python slurm_stand_ins.py NAME ARGUMENTS, where $STAND_INS is a folder for what they tell each
other. sbatch waits for the job, and starts it again where it was put back into the queue; all nodes
are this machine.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

JOB = "4711"
PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL of tasks that outlive another one


def place() -> Path:
    """Where they tell each other what is going on."""
    return Path(os.environ["STAND_INS"])


def sbatch(words: list[str]) -> int:
    """Run a script by what its #SBATCH lines say, or the flags before it."""
    given = [word for word in words[:2] if word.startswith("--")]
    script, *rest = words[len(given) :]
    said = re.findall(r"^#SBATCH (--\S+)", Path(script).read_text(), re.MULTILINE)
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in [*said, *given])
    nodes, tasks = int(flags["nodes"]), int(flags["ntasks-per-node"])
    environment = os.environ | {
        "SLURM_JOB_ID": JOB,
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_JOB_NODELIST": f"localhost[1-{nodes}]",
    }
    if "cpus-per-task" in flags:
        environment["SLURM_CPUS_PER_TASK"] = flags["cpus-per-task"]
    spooled = place() / "slurm_script"  # the script runs from elsewhere
    shutil.copy(script, spooled)
    restarts, again = 0, place() / "requeued"
    while True:
        code = subprocess.run(["bash", spooled, *rest], env=environment, check=False).returncode
        if not again.exists():
            return code
        assert "requeue" in flags, "SLURM puts no job back that does not say --requeue"
        again.unlink()
        restarts += 1
        environment["SLURM_RESTART_COUNT"] = str(restarts)


def srun(words: list[str]) -> int:
    """Start all tasks of the job; the highest exit code."""
    wait, *command = words
    patience = float(wait.removeprefix("--wait="))  # for the others once one has ended
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for number in range(int(os.environ["SLURM_NTASKS"])):
        of_task = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number % per_node)}
        tasks.append(subprocess.Popen(command, env=os.environ | of_task))
    (place() / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    deadline = None
    while any(task.poll() is None for task in tasks):
        if deadline is None and any(task.poll() is not None for task in tasks):
            deadline = time.monotonic() + patience
        if deadline is not None and time.monotonic() > deadline:
            end(tasks)
        time.sleep(0.02)
    return max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks))


def end(tasks: "list[subprocess.Popen[bytes]]") -> None:
    """End those that are still there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(task.poll() is None for task in tasks):
            time.sleep(0.02)


def scontrol(words: list[str]) -> int:
    """The machines of the job; or put it back into the queue."""
    if words[:2] == ["show", "hostnames"]:
        print("localhost\nlocalhost")
    elif words == ["requeue", JOB]:
        (place() / "requeued").touch()
    else:
        return 2
    return 0


if __name__ == "__main__":
    stand_in = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]]
    sys.exit(stand_in(sys.argv[2:]))
