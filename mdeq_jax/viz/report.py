"""Shows a run as one HTML page that needs no other file.

    python -m mdeq_jax.viz.report --workdir=runs/digits

The page shows the last evaluation, curves of `metrics.jsonl`, the scores by class if the task has
them, what the newest checkpoint gets wrong, `convergence.png`, `sweep.png` and the config.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

from mdeq_jax.engine.review import review
from mdeq_jax.engine.saved_config import read_config
from mdeq_jax.engine.writers import read_metrics
from mdeq_jax.runtime.compilation import choose_flags, keep_compiled_programs
from mdeq_jax.viz.html import escape, section
from mdeq_jax.viz.page import page
from mdeq_jax.viz.review import Review, review_html

PICTURES = {
    "convergence.png": "Residual against solver step",
    "sweep.png": "Evaluations by number of solver steps",
}


def write_report(
    workdir: str | Path, output: str | Path | None = None, reviewed: Review | str = ""
) -> Path:
    """Writes the page of a run.

    Args:
        workdir: work directory with `metrics.jsonl`.
        output: the file; None: `workdir/report.html`.
        reviewed: what the model gets wrong, of `mdeq_jax.engine.review.review`; or a sentence on
            why that is unknown.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no `metrics.jsonl`.
        ValueError: it is empty or not a list of JSON objects.
    """
    workdir = Path(workdir).expanduser()
    lines = read_metrics(workdir)
    config = workdir / "config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    pictures = {
        t: (workdir / f).read_bytes() for f, t in PICTURES.items() if (workdir / f).is_file()
    }
    if isinstance(reviewed, Review):
        mistakes = review_html(reviewed)
    else:
        mistakes = section("Worst examples", f"<p>{escape(reviewed)}</p>") if reviewed else ""
    output = Path(output) if output is not None else workdir / "report.html"
    name = str(settings.get("name", workdir.name))
    output.write_text(page(name, lines, settings, pictures, mistakes))
    return output


def main() -> None:
    """Parses the command line and writes the page."""
    parser = argparse.ArgumentParser(description="Shows a run as one HTML page.")
    parser.add_argument("--workdir", required=True, help="work directory of train.py")
    parser.add_argument("--output", help="file to write; default: WORKDIR/report.html")
    parser.add_argument(
        "--checkpoint", default="latest", help="to find the worst examples: latest, best or a step"
    )
    parser.add_argument(
        "--examples", type=int, default=1000, help="evaluated for the worst ones; 0: none of them"
    )
    parser.add_argument("--data_dir", help="where the data are, if not where the run read them")
    parser.add_argument("--config", help="config file to run first, if it registers the model")
    arguments = parser.parse_args()
    if arguments.config:
        runpy.run_path(arguments.config)
    workdir = Path(arguments.workdir).expanduser()
    try:
        read_metrics(workdir)  # before anything is compiled
        reviewed = _review(workdir, arguments) if arguments.examples > 0 else ""
        print(f"Wrote {write_report(workdir, arguments.output, reviewed)}.")
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _review(workdir: Path, arguments: argparse.Namespace) -> Review | str:
    """The review; if data or checkpoint are missing, a sentence on what is missing."""
    try:
        choose_flags(read_config(workdir).quick_compilation)
        keep_compiled_programs(True)
        return review(
            workdir,
            checkpoint=arguments.checkpoint,
            max_examples=arguments.examples,
            data_dir=arguments.data_dir,
        )
    except (ValueError, OSError) as error:
        print(f"Without the worst examples: {error}")
        return f"They are unknown: {error}"


if __name__ == "__main__":
    main()
