"""torchrun, srun, and the environment variables in which they pass each process its rank. Without torch."""
import os
import re

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # and MASTER_PORT


def launched() -> bool:
    """Whether a launcher (torchrun, srun, or a user who sets VARIABLES by hand) started this process as one of several.

    srun's own variables are translated into VARIABLES. Raises ValueError if only some of them are set, or invalid.
    """
    env = os.environ
    if is_torchrun():
        return True
    # SLURM_NTASKS is also set in a batch script or a shell in an allocation, which are not steps of several tasks.
    if not env.get("RANK") and _is_number(env.get("SLURM_STEP_NUM_TASKS")) and int(env["SLURM_STEP_NUM_TASKS"]) > 1:
        _translate_srun()
    given = [name for name in VARIABLES[:3] if env.get(name)]  # MASTER_ADDR alone may be set for other programs
    if not given or env.get("WORLD_SIZE") == "1":
        return False
    missing = [name for name in VARIABLES if not env.get(name)]
    if missing:
        raise ValueError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all of {', '.join(VARIABLES)}, or "
                         "none")
    if not all(_is_number(env[name]) for name in VARIABLES[:3]) or int(env["RANK"]) >= int(env["WORLD_SIZE"]):
        values = ", ".join(f"{name}={env[name]}" for name in VARIABLES[:3])
        raise ValueError(f"{values} is invalid: RANK must be a number from 0 to WORLD_SIZE - 1, and LOCAL_RANK "
                         "a process's number on its machine")
    env.setdefault("MASTER_PORT", "29500")
    return True


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit()


def _translate_srun() -> None:
    env = os.environ
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        if name not in env:
            raise ValueError(f"SLURM_STEP_NUM_TASKS is set, but not {name}: start with srun or torchrun, or unset both")
    env["RANK"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_LOCALID"]
    env["WORLD_SIZE"] = env["SLURM_STEP_NUM_TASKS"]
    env.setdefault("MASTER_ADDR", _first_host())
    # Above the reserved ports and below the ephemeral ones; each step of a job has its own.
    job, step = (int(env[name]) if _is_number(env.get(name)) else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    env.setdefault("MASTER_PORT", str(10_000 + (job + 101 * step) % 20_000))


def _first_host() -> str:
    """The machine of a step's first task; srun may be called from another, so that one is the last choice."""
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if hosts := os.environ.get(name):
            return re.sub(r"\[(\w+)[^]]*\]", r"\1", hosts).split(",")[0]  # n[01-03,7],m1: the first is n01
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's rank, before the rendezvous."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """The number of processes of the launch."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def continue_command(words: str) -> str:
    """The command line that starts `words` with as many processes as this launch has."""
    if is_torchrun():
        return f"torchrun --nproc_per_node={world_size()} {words}" if world_size() > 1 else f"python {words}"
    by_srun = world_size() > 1 and os.environ.get("SLURM_PROCID") == os.environ["RANK"]
    return f"srun --ntasks={world_size()} python {words}" if by_srun else f"python {words}"
