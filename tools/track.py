"""Send run records to Weights & Biases or MLflow: the options and the values of every epoch."""

import argparse
import importlib
import sys
from pathlib import Path

if not __package__:  # run as a script, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pycls_std.process import streams  # noqa: E402
from pycls_std.process.errors import one_line  # noqa: E402
from pycls_std.results.read import Run, find_runs  # noqa: E402


def epochs_of(run: Run) -> dict[int, dict[str, float]]:
    """Return the values of each epoch by tag, in order of epochs."""
    epochs = sorted({epoch for curve in run.curves.values() for epoch in curve})
    return {epoch: {tag: curve[epoch] for tag, curve in run.curves.items() if epoch in curve} for epoch in epochs}


def to_wandb(wandb, run: Run, project: str) -> None:
    """Log a run to W&B; with WANDB_MODE=offline to ./wandb, for `wandb sync`."""
    name = f"{run.name}_{run.seed}"
    with wandb.init(project=project, name=name, group=run.name, config=run.options) as log:
        for epoch, values in epochs_of(run).items():
            log.log(values, step=epoch)
        log.summary["status"] = run.status


def to_mlflow(mlflow, run: Run, project: str) -> None:
    """Log a run to the MLflow server or folder of MLFLOW_TRACKING_URI."""
    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=f"{run.name}_{run.seed}"):
        mlflow.log_params(run.options)
        mlflow.set_tags({"config": run.name, "status": run.status})
        for epoch, values in epochs_of(run).items():
            mlflow.log_metrics(values, step=epoch)


TRACKERS = {"wandb": to_wandb, "mlflow": to_mlflow}


@streams.program("track.py")
def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the tracker raised an error, 2 it is not installed, or there is no run."""
    parser = argparse.ArgumentParser(prog="track.py", description=__doc__)
    parser.add_argument("tracker", choices=TRACKERS)
    parser.add_argument("runs", nargs="+", help="run records, or folders of some, such as runs")
    parser.add_argument("--project", default="pycls_std", help="W&B's project, MLflow's experiment")
    args = parser.parse_args(argv)
    try:
        runs = find_runs(args.runs)
        library = importlib.import_module(args.tracker)
    except ImportError:
        streams.complain(f"track.py: {args.tracker} is not installed: pip install {args.tracker}")
        return 2
    except ValueError as error:
        streams.complain(f"track.py: {one_line(error)}")
        return 2
    for run in runs:
        try:
            TRACKERS[args.tracker](library, run, args.project)
        except Exception as error:  # each library has its own errors
            streams.complain(f"track.py: {run.folder}: {one_line(error)}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
