"""The `dfa` command."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
import typer

import opu
from dfa_client.checkpoint import load_checkpoint
from dfa_client.data import DATASETS, load_data
from dfa_client.feedback import METHODS
from dfa_client.settings import RECIPES, TrainingSettings, check_settings
from dfa_client.training import TrainingResult, Trial, Watcher, check_checkpoint_file, train, tune_learning_rate
from opu.console import JsonOption, Report, plain, reporting, split_json_option
from opu.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from dfa_client.checkpoint import EpochRecord

__all__ = ["main"]

app = typer.Typer(
    name="dfa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 ok, 1 failed, 2 bad input, 3 unreachable, 4 refused.",
)


def main() -> None:
    """Run the command line and end the process with its exit status."""
    app(args=split_json_option(sys.argv[1:]), prog_name="dfa")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openopu {opu.__version__}")
        raise typer.Exit


@app.callback()
def _dfa(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train networks by direct feedback alignment, through light."""


def _defaults(field: str) -> str:
    """Say what the recipes of the data sets have for an option."""
    values = {name: getattr(recipe, field) for name, recipe in RECIPES.items()}
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" for name, value in values.items()
    }
    return "Default: " + "; ".join(f"{name} {text}" for name, text in texts.items()) + "."


@app.command("train")
def train_command(
    *,
    data: Annotated[str, typer.Option(help=f"The data set: {', '.join(DATASETS)}.")] = "digits",
    method: Annotated[
        str, typer.Option(help=f"Where the hidden layers' error comes from: {', '.join(METHODS)}.")
    ] = "optical",
    uri: Annotated[
        str | None,
        typer.Option(
            "--opu", metavar="URI", help="The device of the method optical. Default: OPU_URI, then a simulated one."
        ),
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(metavar="W,W,...", help=f"Widths of the hidden layers. {_defaults('hidden')}")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=f"How often every image is seen. {_defaults('epochs')}")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Images in a step. {_defaults('batch_size')}")] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            metavar="X|auto",
            help="Of Adam. auto: train with the default, 3, 10, ... times it or 0.3, 0.1, ... times it, while it gets "
            f"better on the validation images. {_defaults('learning_rate')}",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="ternary, optical: errors up to this size are sent as 0, others as -1 or 1.")
    ] = 0.15,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of all that chance decides. Repeat it for several runs. Default: 0.")
    ] = None,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Measure the angles to the true gradient; takes more time.")
    ] = False,
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Has mnist/ and fashion-mnist/. Default: OPENOPU_DATA, then a download."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save the state here after every epoch, and within long ones.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    checkpoint_s: Annotated[float, typer.Option(help="Seconds between checkpoints within an epoch.")] = 30.0,
    wait_s: Annotated[float, typer.Option(help="How long to wait for a device whose link fails, in seconds.")] = 60.0,
    json_to: JsonOption = None,
) -> None:
    """Train a network and report its accuracy on the test images.

    What carries the error back:
    - bp: back-propagation, the true gradient
    - dfa: the error reaches every layer through one fixed random matrix
    - ternary: the same, with the error rounded to -1, 0 and 1
    - optical: the same, with the light of a device as the matrix
    - shallow: only the output layer learns; what the others must beat

    For example:

    dfa train --data digits --method dfa

    dfa train --data digits --method optical --opu 'sim:?preset=aurora&seed=7' --seed 0 --seed 1 --seed 2

    dfa train --data mnist --epochs 5 --method optical --opu tcp://127.0.0.1:5755 --checkpoint run.npz --json run.json
    """
    with reporting("train", json_to) as report:
        _check_options(
            method=method,
            uri=uri,
            seeds=seed,
            checkpoint=checkpoint,
            resume=resume,
            wait_s=wait_s,
            checkpoint_s=checkpoint_s,
        )
        settings = _settings(
            data=data,
            method=method,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            threshold=threshold,
            seeds=seed,
            alignment=alignment,
        )
        trials: list[Trial] = []
        if learning_rate == "auto" and resume and checkpoint is not None:
            rate = load_checkpoint(checkpoint).settings.learning_rate
            settings = msgspec.structs.replace(settings, learning_rate=rate)
        elif learning_rate == "auto":
            with _Display(report.console, "tuning") as display:
                loaded = load_data(data, seed=settings.seed, data_dir=data_dir)
                rate, trials = tune_learning_rate(settings, loaded, watcher=display, uri=uri, wait_s=wait_s)
            settings = msgspec.structs.replace(settings, learning_rate=rate)
        results = []
        for each in seed or [0]:
            with _interruption_told(report.console, checkpoint), _Display(report.console, f"seed {each}") as display:
                results.append(
                    train(
                        msgspec.structs.replace(settings, seed=each),
                        load_data(data, seed=each, data_dir=data_dir),
                        uri=uri,
                        wait_s=wait_s,
                        checkpoint=checkpoint,
                        resume=resume,
                        checkpoint_every_s=checkpoint_s,
                        watcher=display,
                    )
                )
        _report(report, results, trials)


def _check_options(
    *,
    method: str,
    uri: str | None,
    seeds: list[int] | None,
    checkpoint: str | None,
    resume: bool,
    wait_s: float,
    checkpoint_s: float,
) -> None:
    if uri is not None and method != "optical":
        raise InputError(
            f"The method {method!r} needs no device, and --opu is {uri!r}.", "Leave --opu out, or use --method optical."
        )
    if checkpoint is not None and len(seeds or [0]) > 1:
        raise InputError(
            f"--checkpoint {checkpoint} is one file, and there are {len(seeds or [0])} seeds.",
            "Give every seed a process and a checkpoint of its own.",
        )
    if resume and checkpoint is None:
        raise InputError("--resume needs a checkpoint.", "Name it by --checkpoint FILE.")
    if checkpoint is not None and not resume:
        check_checkpoint_file(checkpoint, resume=False)
    for option, seconds in (("--wait-s", wait_s), ("--checkpoint-s", checkpoint_s)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(f"{option} is {seconds}.", "Use a number of seconds from 0 on.")


def _settings(
    *,
    data: str,
    method: str,
    hidden: str | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: str | None,
    threshold: float,
    seeds: list[int] | None,
    alignment: bool,
) -> TrainingSettings:
    """Make settings from texts, with the data set's recipe for what is left open."""
    if data not in RECIPES:
        raise InputError(f"The data set is {data!r}.", f"Use one of {', '.join(DATASETS)}.")
    recipe = RECIPES[data]
    settings = TrainingSettings(
        data=data,
        method=method,
        hidden=recipe.hidden if hidden is None else _parse_widths(hidden),
        epochs=recipe.epochs if epochs is None else epochs,
        batch_size=recipe.batch_size if batch_size is None else batch_size,
        learning_rate=recipe.learning_rate if learning_rate in (None, "auto") else _parse_rate(learning_rate),
        threshold=threshold,
        seed=seeds[0] if seeds else 0,
        alignment=alignment,
    )
    for each in seeds or [0]:
        check_settings(msgspec.structs.replace(settings, seed=each))
    return settings


def _parse_widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"The hidden layers are {text!r}.", "Use whole numbers with commas between, for example 32,32."
        ) from error


def _parse_rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"The learning rate is {text!r}.", "Use a number, for example 0.001, or auto.") from error


@contextmanager
def _interruption_told(console: Console, checkpoint: str | None) -> Iterator[None]:
    """Say, when Ctrl-C ends a training, whether it can go on later."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is not None and Path(checkpoint).exists():
            said = f"Interrupted. {plain(checkpoint)} holds the training: go on by the same command with --resume."
        else:
            said = "Interrupted. Nothing of the training is saved."
        console.print(said, style="bold yellow", highlight=False, soft_wrap=True)
        raise


class _Display(Watcher):
    """Shows a training: a line for an epoch, and a bar where there is a terminal."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.progress import Progress

        self._console = console
        self._title = title
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_step(self, n_steps: int, n_total: int) -> None:
        self._progress.update(self._task, completed=n_steps, total=n_total)

    def on_epoch(self, record: EpochRecord) -> None:
        angles = "".join(f" {angle:.0f}\N{DEGREE SIGN}" for angle in record.alignment_deg or [] if angle is not None)
        self._console.print(
            f"{self._title}, epoch {record.epoch}: loss {record.loss:.3f}, accuracy train {record.train_accuracy:.3f} "
            f"validation {record.validation_accuracy:.3f} test {record.test_accuracy:.3f}, {record.seconds:.1f} s"
            f"{angles}",
            highlight=False,
            soft_wrap=True,
        )

    def on_notice(self, text: str) -> None:
        from rich.console import Console

        console = self._console if self._console.stderr else Console(stderr=True)
        console.print(plain(text), style="bold yellow", highlight=False, soft_wrap=True)


def _report(report: Report, results: list[TrainingResult], trials: list[Trial]) -> None:
    first = results[0]
    accuracy = mean(result.test_accuracy for result in results)
    runs: list[dict[str, Any]] = [
        {
            "seed": result.settings.seed,
            "test_accuracy": result.test_accuracy,
            "validation_accuracy": result.validation_accuracy,
            "frames": result.frames,
            "fit_frames": result.fit_frames,
            "device_s": result.device_s,
            "uri": result.uri,
            "session_id": result.session_id,
            "start_unix_s": result.start_unix_s,
            "end_unix_s": result.end_unix_s,
            "epochs": [msgspec.to_builtins(record) for record in result.epochs],
        }
        for result in results
    ]
    report.fields |= {
        "test_accuracy": accuracy,
        "method": first.settings.method,
        "data": first.settings.data,
        "hidden": first.settings.hidden,
        "learning_rate": first.settings.learning_rate,
        "threshold": first.settings.threshold,
        "batch_size": first.settings.batch_size,
        "seed": first.settings.seed,
        "epochs": runs[0]["epochs"],
        "frames": sum(result.frames for result in results),
        "device_s": math.fsum(result.device_s for result in results),
        "tuning": [msgspec.to_builtins(trial) for trial in trials],
        "runs": runs,
        "pid": os.getpid(),
    }
    light = ""
    if report.fields["frames"]:
        light = f"; {report.fields['frames']} frames, {report.fields['device_s']:.1f} s of device time"
    seeds = f", mean of {len(results)} seeds" if len(results) > 1 else ""
    report.console.print(
        f"[bold]Test accuracy {accuracy:.4f}[/]{seeds}: {first.settings.method} on {first.settings.data}, "
        f"learning rate {first.settings.learning_rate:g}{light}.",
        highlight=False,
        soft_wrap=True,
    )
