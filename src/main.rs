//! The `hyokfs` binary: parses the command line, runs one command, turns its result into an exit code.

fn main() {}
