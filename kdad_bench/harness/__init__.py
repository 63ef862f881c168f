"""The roof: jobs, data sets, metrics, clocks, executors and the command line. It may see every room."""
