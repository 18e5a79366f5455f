"""This paper's study: its claims, tables, figures and report, on top of mmtlib."""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # nbformat's validator would take two seconds to load it, for nothing
