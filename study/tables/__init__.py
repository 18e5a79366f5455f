"""The tables of a report, each from the stored predictions."""
