"""`multimodal COMMAND ...`. Imports nothing heavy: each command becomes `python -m multimodal.COMMAND`."""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "train": "train a model on a task and score it: multimodal train model=lxmert task=vqa",
    "evaluate": "score a run again: multimodal evaluate run=RUNS_DIR/STUDY/JOB",
}

USAGE = "usage: multimodal COMMAND [GROUP=OPTION ...] [KEY=VALUE ...]\n\n" + "\n".join(
    f"  {name:10}{what}" for name, what in COMMANDS.items()
)


def main() -> None:
    """Replace this process by the command's own: Lightning starts the other ranks from its command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    command, *rest = arguments
    if command not in COMMANDS:
        sys.exit(f"multimodal {command}: no such command; allowed: {', '.join(COMMANDS)}\n\n{USAGE}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", f"multimodal.{command}", *rest])


if __name__ == "__main__":
    main()
