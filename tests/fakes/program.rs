//! The fake key services as a program, for trying hyokfs without a cloud:
//!
//! ```text
//! cargo run --example fake-keys -- aws --port 4600
//! cargo run --example fake-keys -- azure --port 4700 --control-port 4701 --ca-file /tmp/ca.pem
//! ```
//! Prints one line with the address and a new key, then answers until it is killed. On 127.0.0.1 only.

#[path = "aws/mod.rs"]
mod aws;
#[path = "azure/mod.rs"]
mod azure;

use std::process::ExitCode;

const USAGE: &str =
    "usage: fake-keys aws [--port N], or fake-keys azure [--port N] [--control-port N] [--ca-file FILE]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let Some((service, options)) = words.split_first() else { return Err(USAGE.to_owned()) };
    if service == "azure" {
        return azure::run(options);
    }
    let port = match options {
        [] => 0,
        [name, port] if name == "--port" => port.parse().map_err(|_| format!("`{port}` is no port; {USAGE}"))?,
        _ => return Err(USAGE.to_owned()),
    };
    match service.as_str() {
        "aws" => {
            let fake = aws::FakeAws::start_on(port, None).map_err(|error| format!("port {port}: {error}"))?;
            let key = fake.world().create_key();
            println!("{} awskms:///{key}", fake.url());
            loop {
                std::thread::park();
            }
        }
        _ => Err(USAGE.to_owned()),
    }
}
