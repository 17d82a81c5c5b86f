"""Training on the command line.

torchrun --standalone --nproc-per-node 8 -m training base --data DATASET --losses.vgg19 vgg19.pth --output runs/base
torchrun --standalone --nproc-per-node 8 -m training base --data DATASET --losses.vgg19 vgg19.pth \\
    --init released_weights/ --recipe finetune --output runs/finetune
python -m training base --recipe tiny --data demo_dataset --output runs/tiny
python -m training export runs/base --output my_weights/
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import time
import traceback
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from manifests.broken_pipe import ending_quietly
from model.arguments import require_no_empty, with_home
from model.termination import Terminated, sigterm_interrupts

COMMANDS = {
    "motion": ("training.motion_command", "Motion", "Train M alone on labels: a start for `base --init`."),
    "base": ("training.base_command", "Base", "Train F, M, W and G from scratch, or from given weights."),
    "landmarks": ("training.landmarks_command", "Landmarks", "Train a landmark network for retargeting."),
    "stitching": ("training.correction_commands", "Stitching", "Train S on a finished base model."),
    "retargeting": ("training.correction_commands", "Retargeting", "Train R_eyes or R_lip on a finished base model."),
    "evaluate": ("training.evaluation.evaluate", "Evaluate", "Measure weights on a split of a data set."),
    "export": ("training.__main__", "Export", "Write the weights of runs in the released files' layout."),
}


_ALONE = ("evaluate", "export")
"""Commands that train nothing: every rank would do all of the work, and write the same files."""
_OTHER_RANKS_WAIT_S = 3.0
RESUMABLE = "interrupted; the same command continues"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the weights of runs in the released files' layout, for `python -m model` and third-party tools.

    The first run gives the whole model; further ones, of stage II on the same base, give their small network.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """First a run of `training base`, or weights; then runs of stitching and of retargeting (eyes, lip) on it. Or runs
    of stage II alone: each holds the base that it was trained on."""
    output: Path
    """Folder to write, or a name that ends in .safetensors."""
    weights: Literal["average", "last"] = "average"
    """average: the moving average, which looks better, and on which stage II is trained; last: the weights of the last
    step."""
    checkpoint: Literal["best", "latest"] = "best"
    """best by validation (latest where nothing was validated), or latest."""

    def main(self) -> int:
        from training.export import export

        if not self.runs:
            raise ValueError("nothing to export: name the folder of a run of `training base`, then those of stage II")
        with sigterm_interrupts():  # so that it, too, leaves no part of a file
            notes = export(self.runs, self.output, average=self.weights == "average", which=self.checkpoint)
        for note in notes:
            print(note)
        print(f"{self.output}: written; try `python -m model inspect {shlex.quote(str(self.output))}`")
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 success, 1 the work had to stop, 2 wrong use, 130 interrupted, 141 its reader has gone.

    An export that is ended by SIGTERM or SIGHUP gives 143.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    start_logging()
    try:
        with ending_quietly():
            return parse(arguments).main() or 0
    except (ValueError, FileNotFoundError, PermissionError) as error:
        _tell_error(error)
        return 2
    except OSError as error:
        _tell_error(error)
        return 1
    except KeyboardInterrupt as stop:
        print("interrupted" if arguments[0] in _ALONE else RESUMABLE, file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def _tell_error(error: Exception) -> None:
    """One line. What all ranks meet is told by the first: torchrun has ended the others before they tell it."""
    _let_first_rank_speak()
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _let_first_rank_speak() -> None:
    if not _is_first_rank():
        time.sleep(_OTHER_RANKS_WAIT_S)


def start_logging() -> None:
    """Warnings on stderr, each once, by the first process of a run."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return _is_first_rank() and not (text in told or told.add(text))

    handler = logging.StreamHandler()
    handler.addFilter(is_new)
    # Does nothing where the program around this one has handlers of its own.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def parse(arguments: list[str]) -> Any:
    """The command with its options; those of a recipe start from its preset.

    Raises:
        ValueError: an argument is empty, or a recipe is wrong.
        SystemExit: help was asked for (0), or there is no such command or option (2). The first rank says so.
    """
    try:
        return _parse(arguments)
    except SystemExit:
        _let_first_rank_speak()
        raise


def _parse(arguments: list[str]) -> Any:
    if not arguments or arguments[0] not in COMMANDS:
        wants_help = bool(arguments) and arguments[0] in ("-h", "--help")
        unknown = f"error: unknown command {arguments[0]!r}\n" if arguments and not wants_help else ""
        text = f"{unknown}usage: python -m training COMMAND [OPTIONS]\n\n"
        text += "".join(f"  {name:<12} {about}\n" for name, (_, _, about) in COMMANDS.items())
        text += f"\n`python -m training COMMAND --help` explains the options.\n\n{(__doc__ or '').strip()}\n"
        if _is_first_rank():
            print(text, end="", file=sys.stdout if wants_help else sys.stderr)
        sys.exit(0 if wants_help else 2)
    name, rest = arguments[0], with_home(arguments[1:])
    require_no_empty(rest, may_be_empty=("--losses.", "--data."))  # whose help says what nothing means
    if name in _ALONE and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{name} works in one process, and torchrun starts several: use `python -m training {name}`")
    module, cls_name, _ = COMMANDS[name]
    # Run as a program, this module is __main__, and a second copy would be imported under its own name.
    cls = Export if name == "export" else getattr(importlib.import_module(module), cls_name)
    prog = f"python -m training {name}"
    if not hasattr(cls, "RECIPE"):
        return tyro.cli(cls, args=rest, prog=prog, console_outputs=_is_first_rank())
    from manifests.recipes import named_on
    from training.recipe import load_recipe

    defaults = {f.name: tyro.MISSING for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    chosen = named_on(rest, "--recipe")
    preset = next(f.default for f in fields(cls) if f.name == "recipe_name")
    defaults["recipe"] = load_recipe(cls.RECIPE, cls.STAGE, preset if chosen is None else chosen)
    return tyro.cli(cls, args=rest, prog=prog, default=cls(**defaults), console_outputs=_is_first_rank())


def run_as_program() -> None:
    """`main`, and an end that cannot hang."""
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if "training.distributed" in sys.modules:
        from training.distributed import leave

        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    run_as_program()
