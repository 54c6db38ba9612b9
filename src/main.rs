//! The `hyokfs` binary: parses the command line, runs one command, turns its result into an exit code.

/// Wipes every byte that is given back, so that no plaintext or key outlives its owner.
#[global_allocator]
static ALLOCATOR: hyokfs::sys::alloc::ZeroOnFree = hyokfs::sys::alloc::ZeroOnFree;

fn main() -> std::process::ExitCode {
    hyokfs::cli::main()
}
