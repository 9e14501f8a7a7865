"""One module for each version of the tables. File names begin with the version's number."""
