"""Drawing: pixel arithmetic, subjects, and the files of the embedded data sets and of stand-ins."""
