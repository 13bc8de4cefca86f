"""What the command line runs: a command is a function of the parsed arguments that returns the exit code."""
