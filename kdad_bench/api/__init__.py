"""The room of notebooks and programs: the commands' work as functions and objects. It prints nothing.

What is public is named in `kdad_bench`, from where it is imported when it is used.
"""
