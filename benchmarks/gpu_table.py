"""The table that `benchmarks.gpu` prints: what was measured, next to the original and the aims."""

from typing import NamedTuple

from benchmarks.report import markdown


class Target(NamedTuple):
    """One network: the original's figures (PyTorch, one H200, TF32) and the aims.

    Attributes:
        batch: images per step.
        steps: forward and backward solver steps.
        train, train_aim: images per second, training.
        infer, infer_aim: images per second, inference.
        memory, memory_aim: GB of a training step.
    """

    batch: int
    steps: tuple[int, int]
    train: float
    train_aim: float
    infer: float
    infer_aim: float
    memory: float
    memory_aim: float


# In order of worth.
TARGETS = {
    "cifar10_large": Target(96, (18, 20), 343, 2740, 646, 7000, 3.1, 1.5),
    "imagenet_small": Target(128, (26, 27), 160, 1280, 387, 3000, 10.3, 5.1),
    "cifar10_tiny": Target(64, (18, 20), 514, 4100, 1109, 12000, 0.7, 0.35),
}


def table(reports: dict) -> str:
    """All programs next to the original's figures, in Markdown.

    Args:
        reports: process -> mode -> report; a process has `name`, `config`, `precision`, `variant`.
    """
    rows, machines = [], set()
    for process, modes in sorted(reports.items(), key=lambda item: item[0].name):
        target = TARGETS[process.config]
        for mode, report in modes.items():
            training = mode == "training"
            original, aim = (
                (target.train, target.train_aim) if training else (target.infer, target.infer_aim)
            )
            rate, peak = report["images_per_second"], report.get("peak_bytes")
            machines.add(report["machine"])
            rows.append(
                (
                    f"{process.config}, batch {report['batch']}, {mode}",
                    process.precision,
                    process.variant.replace("_", " + "),
                    f"{1e3 * report['seconds']['median']:.2f}",
                    f"{rate:,.0f}",
                    f"{rate / original:.2f}",
                    f"{aim:,.0f}",
                    "ended early" if report["ended_early"] else "yes" if rate >= aim else "no",
                    f"{report['planned_bytes'] / 1e9:.2f}",
                    "" if peak is None else f"{peak / 1e9:.2f}",
                    f"{target.memory_aim}" if training else "",
                    f"{report['trace_s']:.0f} + {report['compile_s']:.0f}",
                )
            )
    head = ("network", "precision", "variant", "ms", "images/s", "x original", "aim", "reached")
    head += ("GB planned", "GB peak", "GB aim", "trace + compile, s")
    return f"{markdown(head, rows)}\n{'; '.join(sorted(machines))}"
