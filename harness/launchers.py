"""torchrun, srun and the environment variables by which they tell a process its place among others. Without torch."""
import os
import re

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # set by a launcher, as is MASTER_PORT


def launched() -> bool:
    """Whether a launcher started this process as one of several, and left its place in the environment variables PLACE.

    torchrun does so, and whoever sets them by hand; srun's own are translated. Raises ValueError for half a set.
    """
    env = os.environ
    if is_torchrun():
        return True
    # A batch script, or a shell in an allocation, has SLURM_NTASKS too, but is not a step of several tasks.
    if not env.get("RANK") and _is_number(env.get("SLURM_STEP_NUM_TASKS")) and int(env["SLURM_STEP_NUM_TASKS"]) > 1:
        _translate_srun()
    given = [name for name in PLACE[:3] if env.get(name)]  # MASTER_ADDR alone is set for others' sake
    if not given or env.get("WORLD_SIZE") == "1":
        return False
    missing = [name for name in PLACE if not env.get(name)]
    if missing:
        raise ValueError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all of {', '.join(PLACE)}, or "
                         "none")
    if not all(_is_number(env[name]) for name in PLACE[:3]) or int(env["RANK"]) >= int(env["WORLD_SIZE"]):
        said = ", ".join(f"{name}={env[name]}" for name in PLACE[:3])
        raise ValueError(f"{said} is no place among processes: RANK must be a number from 0 to WORLD_SIZE - 1, and "
                         "LOCAL_RANK count a machine's own processes")
    env.setdefault("MASTER_PORT", "29500")
    return True


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit()


def _translate_srun() -> None:
    env = os.environ
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        if name not in env:
            raise ValueError(f"SLURM_STEP_NUM_TASKS is set, but not {name}: start by srun or torchrun, or unset both")
    env["RANK"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_LOCALID"]
    env["WORLD_SIZE"] = env["SLURM_STEP_NUM_TASKS"]
    env.setdefault("MASTER_ADDR", _first_host())
    # Above the ports that systems use, below those that they hand out; each step of a job has its own.
    job, step = (int(env[name]) if _is_number(env.get(name)) else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    env.setdefault("MASTER_PORT", str(10_000 + (job + 101 * step) % 20_000))


def _first_host() -> str:
    """The machine of an srun's first task; the one that srun was called on may be another, so it is asked last."""
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if hosts := os.environ.get(name):
            return re.sub(r"\[(\w+)[^]]*\]", r"\1", hosts).split(",")[0]  # n[01-03,7],m1 begins with n01
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's number among those that were launched together."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """How many processes were launched together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def continue_command(words: str) -> str:
    """The command line that starts this many processes of `words`."""
    if is_torchrun():
        return f"torchrun --nproc_per_node={world_size()} {words}" if world_size() > 1 else f"python {words}"
    by_srun = world_size() > 1 and os.environ.get("SLURM_PROCID") == os.environ["RANK"]
    return f"srun --ntasks={world_size()} python {words}" if by_srun else f"python {words}"
