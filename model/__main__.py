"""LivePortrait on the command line.

$ python -m model animate --source face.jpg --driving talk.mp4 --weights released_weights/ --output out.mp4
$ python -m model retarget --source face.jpg --eyes 0.3 --lip 0.1 --yaw 15 --weights released_weights/ --output out.png
$ python -m model inspect released_weights/
$ python -m model serve --weights released_weights/
"""

from __future__ import annotations

import os
import sys

from model.arguments import require_no_empty, with_home
from model.termination import Terminated, sigterm_interrupts


def main(arguments: list[str] | None = None) -> int:
    """Run a command. What the user can mend is one line on stderr and exit code 2; 1 for weights that `inspect` finds
    incomplete, other or damaged, 130 after Ctrl-C, 141 where the reader of the output has gone, 143 after SIGTERM or
    SIGHUP (0 where that stops a page that is up).

    Imports take seconds, in which a user may already stop the command: hence they are made here.
    """
    try:
        with sigterm_interrupts():
            import tyro

            from model.commands import Command

            arguments = sys.argv[1:] if arguments is None else arguments
            require_no_empty(arguments)
            command = tyro.cli(Command, args=with_home(arguments), prog="python -m model", description=__doc__)
            return command.run() or 0
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
