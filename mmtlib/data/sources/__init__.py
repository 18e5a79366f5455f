"""A module a data set, or two alike: official annotations and a folder of media become a manifest."""
