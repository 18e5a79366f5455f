"""This paper's study: its claims, tables, figures and report, on top of mmtlib."""
