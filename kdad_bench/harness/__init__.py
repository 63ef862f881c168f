"""The corridor: options, selection, plan, jobs, scoring, clocks, executors. It sees every room but the command line."""
