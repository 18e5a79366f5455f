"""The figures of a report and of the notebooks."""
