"""How templates are compiled: Jinja's own way, but what HTML shows is escaped to plain text.

All of it is joined at once, so marking each piece as safe (`Markup`) is for nothing, and takes longer than escaping it.
"""

from __future__ import annotations

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class Compiler(CodeGenerator):
    """For environments that have an `escape`."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        if frame.eval_ctx.volatile or not frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write(f"environment.escape({finalize.src or ''}")
