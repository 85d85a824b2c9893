"""Several processes by torchrun, and a user's error is printed once: `python -m lipstream_training.launch`.

    python -m lipstream_training.launch --nproc-per-node 8 distil OUT --data SHARDS ...

takes torchrun's options, then the arguments of `lipstream-train`. torchrun itself ends any error of a process with its
traceback and a table; here only crashes and bugs end so.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any

from lipstream.cli.main import BUG, USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the processes of this node. Returns 0, or the exit status of the user's error that ended them.

    Raises:
        ChildFailedError: a process crashed or has a bug.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    run: Any = import_module("torch.distributed.run")
    parser = run.get_args_parser()
    parser.allow_abbrev = False  # or the options of lipstream-train are taken for abbreviations of torchrun's
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    args.module = True
    args.training_script_args = [args.training_script, *args.training_script_args]
    args.training_script = "lipstream_training.cli"
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # the table has it
    try:
        run.run(args)
    except ChildFailedError as error:
        status = int(error.get_first_failure()[1].exitcode)
        if USAGE <= status < BUG:
            return status
        raise
    return 0


def is_rank_zero() -> bool:
    """Whether this process prints results: the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def announces(code: str, message: str) -> bool:
    """Whether this process prints an error: of torchrun's processes the first that has it, whichever rank it is."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    if code == "terminated":  # torchrun ends the other processes after an error of one
        return False
    store: Any = import_module("torch.distributed").TCPStore
    key = f"lipstream/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{message}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return bool(store(address, port, is_master=False, timeout=timedelta(seconds=5)).add(key, 1) == 1)
    except (KeyError, ValueError, RuntimeError):  # no store is reachable: rather twice than never
        return True


if __name__ == "__main__":
    sys.exit(main())
