"""Compiles templates as Jinja does, except that HTML escaping returns `str` instead of `Markup`.

The output is joined once at the end, so no piece needs to be marked as safe, and creating a `Markup` takes longer than
the escaping itself.
"""

from __future__ import annotations

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class Compiler(CodeGenerator):
    """For environments with a method `escape`."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        if frame.eval_ctx.volatile or not frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write(f"environment.escape({finalize.src or ''}")
