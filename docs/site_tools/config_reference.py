"""The reference of every config field, from the comments in `configs/`."""

import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).parents[2] / "configs"


class Field(NamedTuple):
    """A field: its path, its default as it is written, and what its comment says."""

    path: str
    default: str
    comment: str


class _Source:
    """A file of configs: its tree, its lines, and its comments by line."""

    def __init__(self, path: Path):
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        self.functions = {n.name: n for n in self.tree.body if isinstance(n, ast.FunctionDef)}
        self.comments, self.alone = {}, set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                self.comments[token.start[0]] = token.string.lstrip("# ")
                if token.line.lstrip().startswith("#"):
                    self.alone.add(token.start[0])

    def comment(self, first: int, last: int) -> str:
        """The comment above the lines of a field, and those at their ends."""
        above, line = [], first - 1
        while line in self.alone:
            above.insert(0, self.comments[line])
            line -= 1
        at_the_end = [
            self.comments[n]
            for n in range(first, last + 1)
            if n in self.comments and n not in self.alone
        ]
        return " ".join(above + at_the_end)

    def dict_fields(self, call: ast.Call, prefix: str) -> list[Field]:
        """The keywords of `dict(...)`, also of one inside a call; parts have paths of their own."""
        fields = []
        for keyword in call.keywords:
            if keyword.arg is None:
                continue
            path = f"{prefix}.{keyword.arg}"
            value = keyword.value
            if isinstance(value, ast.Call) and (inner := _inner_dict(value)) is not None:
                fields += self.dict_fields(inner, path)
            elif isinstance(value, ast.Call) and _name(value) in self.functions:
                fields += self.function_fields(_name(value), path, value)
            else:
                comment = self.comment(keyword.lineno, value.end_lineno or keyword.lineno)
                fields.append(Field(path, _default(value), comment))
        return fields

    def function_fields(self, name: str, prefix: str, call: ast.Call | None = None) -> list[Field]:
        """The fields of the `dict(...)` that a function returns, after those of the call."""
        fields = []
        for node in ast.walk(self.functions[name]):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                if (inner := _inner_dict(node.value)) is not None:
                    fields += self.dict_fields(inner, prefix)
                elif _name(node.value) in self.functions:
                    fields += self.function_fields(_name(node.value), prefix)
                    fields += self.dict_fields(node.value, prefix)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords} if call else {}
        return [f._replace(default=given.get(f.path.rpartition(".")[2], f.default)) for f in fields]


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _inner_dict(call: ast.Call) -> ast.Call | None:
    """`dict(...)`: this call or an argument of `ConfigDict(...)`."""
    if _name(call) == "dict":
        return call
    if ast.unparse(call.func).endswith("ConfigDict"):
        return next((a for a in call.args if isinstance(a, ast.Call) and _name(a) == "dict"), None)
    return None


def _default(value: ast.expr) -> str:
    """A default as a reader understands it; a placeholder is unset."""
    if isinstance(value, ast.Call) and _name(value) == "placeholder":
        return f"None ({ast.unparse(value.args[0])})"
    return ast.unparse(value)


def fields_of_models() -> dict[str, list[Field]]:
    """The fields of `config.model` by family."""
    source = _Source(CONFIGS / "fields" / "models.py")
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_FIELDS":
            assert isinstance(node.value, ast.Dict)
            return {
                ast.literal_eval(key): source.function_fields(ast.unparse(value), "model")
                for key, value in zip(node.value.keys, node.value.values)
                if key is not None
            }
    raise LookupError("configs/fields/models.py has no MODEL_FIELDS.")


def fields() -> list[Field]:
    """All other fields, in the order of `configs/default.py`."""
    source = _Source(CONFIGS / "default.py")
    found = []
    for node in source.functions["get_config"].body:
        if not isinstance(node, ast.Assign):
            continue
        target = ast.unparse(node.targets[0])
        if not target.startswith("config.") or target.startswith("config.model"):
            continue
        path = target.removeprefix("config.")
        inner = _inner_dict(node.value) if isinstance(node.value, ast.Call) else None
        if inner is not None:
            found += source.dict_fields(inner, path)
        else:
            comment = source.comment(node.lineno, node.end_lineno or node.lineno)
            found.append(Field(path, _default(node.value), comment))
    return found


def page() -> str:
    """The page, one table a section."""
    doc = ast.get_docstring(ast.parse((CONFIGS / "default.py").read_text())) or ""
    lines = ["# Config reference", "", doc, ""]
    sections: dict[str, list[Field]] = {}
    for field in fields():
        sections.setdefault(field.path.rpartition(".")[0], []).append(field)
    for section, members in sections.items():
        lines += [f"## {f'config.{section}' if section else 'config'}", "", *_table(members), ""]
    families: dict[tuple[Field, ...], list[str]] = {}
    for family, members in fields_of_models().items():
        families.setdefault(tuple(members), []).append(family)
    for members, names in families.items():
        lines += [f"## config.model: {', '.join(names)}", "", *_table(members), ""]
    return "\n".join(lines)


def _table(members) -> list[str]:
    rows = [
        f"| `{f.path}` | `{f.default}` | {f.comment.replace('|', chr(92) + '|')} |" for f in members
    ]
    return ["| field | default | meaning |", "|---|---|---|", *rows]
