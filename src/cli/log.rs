//! Log lines: short for people on a terminal, JSON for machines. Never a plaintext name, never a key.

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::args::LogFormat;

/// What is shown without `--log`. The protocol crate logs names of files, so it is kept quiet whatever is asked.
const DEFAULT: &str = "info";

/// Sets up logging for the process, to stderr or to `file`. A filter that cannot be understood is an error.
pub fn init(format: Option<LogFormat>, filter: Option<&str>, file: Option<File>) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{},fuser=off", filter.unwrap_or(DEFAULT)))
        .map_err(|error| format!("--log: {error}"))?;
    let terminal = file.is_none() && std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_target(false);
    let json = format.unwrap_or(LogFormat::Human) == LogFormat::Json;
    // A second initialisation (in tests within one process) changes nothing.
    let _ = match (json, file) {
        (true, Some(file)) => builder.json().with_writer(Mutex::new(file)).try_init(),
        (true, None) => builder.json().with_writer(std::io::stderr).try_init(),
        (false, Some(file)) => builder.with_writer(Mutex::new(file)).try_init(),
        (false, None) if terminal => builder.with_timer(()).with_writer(std::io::stderr).try_init(),
        (false, None) => builder.with_timer(SystemTime).with_writer(std::io::stderr).try_init(),
    };
    Ok(())
}
