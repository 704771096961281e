"""Reads tool calls that a model writes as Python: `[name(key="value", other=1)]`."""

from __future__ import annotations

import ast
from typing import Any

_NAMES = {"true": True, "false": False, "null": None}


def read_python_calls(text: str) -> list[dict[str, Any]] | None:
    """The calls as `{"name": …, "arguments": {…}}`; None if the text is anything else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_read_call(call) for call in calls] or None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _read_call(call: ast.expr) -> dict[str, Any]:
    """Raises `ValueError` for what is not a call with arguments by name."""
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call with arguments by name")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("not an argument by name")
        arguments[keyword.arg] = ast.literal_eval(_with_python_names(keyword.value))
    return {"name": ast.unparse(call.func), "arguments": arguments}


def _with_python_names(value: ast.expr) -> ast.expr:
    class Renaming(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node

    renamed = Renaming().visit(value)
    assert isinstance(renamed, ast.expr)
    return renamed
