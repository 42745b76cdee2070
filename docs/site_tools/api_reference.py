"""One page for each package of `mdeq_jax`, with every public name, for mkdocstrings."""

import importlib
import inspect
from types import ModuleType

# Package -> what it is for. `__all__` is what each of them offers; modules have functions instead.
PACKAGES = {
    "mdeq_jax.implicit": "Equilibria, their gradients, Jacobian loss and spectral radius.",
    "mdeq_jax.solvers": "Root solvers and their report.",
    "mdeq_jax.models": "Model families and `build_model`.",
    "mdeq_jax.layers": "Layers that models share.",
    "mdeq_jax.tasks": "Losses, metrics and predictions.",
    "mdeq_jax.data": "Data sets and loaders.",
    "mdeq_jax.training": "Training and evaluation of a config.",
    "mdeq_jax.pretrained": "Sharing trained models.",
    "mdeq_jax.engine.export": "Programs that run without this package.",
    "mdeq_jax.engine.saved_config": "Configs of work directories.",
    "mdeq_jax.convert": "PyTorch files, read without PyTorch.",
    "mdeq_jax.engine.review": "Confusions and worst examples of a checkpoint.",
    "mdeq_jax.viz.report": "A run as one HTML page.",
    "mdeq_jax.viz.review": "The data of confusions and worst examples.",
    "mdeq_jax.hardware": "The hardware that programs are compiled for.",
}


def public_names(module: ModuleType) -> dict[str, str]:
    """The public names of a module, with the path of each definition."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        own = inspect.getmembers(module, lambda x: inspect.isfunction(x) or inspect.isclass(x))
        listed = [n for n, x in own if not n.startswith("_") and x.__module__ == module.__name__]
    return {name: _path(module, name) for name in sorted(listed, key=str.lower)}


def pages() -> dict[str, str]:
    """Markdown by name of the page: an index, and one page a package."""
    found = {}
    index = ["# API reference", "", "Every public name, from the docstrings.", ""]
    for package, purpose in PACKAGES.items():
        module = importlib.import_module(package)
        page = page_name(package)
        lines = [f"# {package}", "", inspect.getdoc(module) or purpose, ""]
        for path in public_names(module).values():
            lines += [f"::: {path}", ""]
        found[page] = "\n".join(lines)
        names = ", ".join(f"[`{name}`][{path}]" for name, path in public_names(module).items())
        index += [f"**[{package}]({page}.md)**: {purpose} {names}.", ""]
    return {"index": "\n".join(index), **found}


def page_name(package: str) -> str:
    """The name of a package's page, without its ending."""
    return package.removeprefix("mdeq_jax.").replace(".", "_")


def _path(module: ModuleType, name: str) -> str:
    """Where a name is defined: mkdocstrings reads the source there."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    source = inspect.getsource(module)
    if f"\n{name}:" in source or f"\n{name} =" in source:
        return f"{module.__name__}.{name}"
    for line in source.splitlines():  # imported from another module
        if line.startswith("from ") and name in line.replace(",", " ").split():
            return f"{line.split()[1]}.{name}"
    raise LookupError(f"{module.__name__}.{name}: its definition was not found.")
