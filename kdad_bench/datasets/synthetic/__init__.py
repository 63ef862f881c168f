"""The embedded data sets and stand-ins: drawing, subjects, writing."""
