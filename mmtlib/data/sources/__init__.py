"""A module a data set: official annotations and a folder of media become a manifest."""
