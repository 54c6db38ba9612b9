//! An AWS that others wrote: the emulator `ministack` with `AUTH=true`, on 127.0.0.1. It checks signatures, trust policies
//! with external ids, role policies, key policies and key states; this was tried for each with `aws`.
//!
//! What it does not do: condition keys `kms:EncryptionContext:…` (a statement that has one never allows anything), the
//! integrity of a blob, and the refusal of a blob of another key (it gives other bytes instead). The fake in `aws/` does.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The vendor's account: in the emulator, a 12-digit access key id is that account's root.
pub const VENDOR: &str = "111111111111";
/// The customer's account.
pub const CUSTOMER: &str = "222222222222";

/// The Python environment with the tools.
pub fn venv() -> PathBuf {
    let path = std::env::var_os("HYOKFS_TEST_VENV").expect(
        "HYOKFS_TEST_VENV is not set: run the tests with tests/run, or make the environment by hand: \
         python3 -m venv target/venv && target/venv/bin/pip install ministack cryptography awscli cfn-lint python-hcl2 \
         pycep-parser && export HYOKFS_TEST_VENV=$PWD/target/venv",
    );
    std::path::absolute(path).unwrap()
}

/// A running emulator; killed when dropped.
pub struct Emulator {
    child: Child,
    port: u16,
    home: tempfile::TempDir,
    venv: PathBuf,
}

impl Emulator {
    /// On any free port.
    pub fn start() -> Self {
        let venv = venv();
        let program = venv.join("bin/ministack");
        assert!(program.exists(), "{} is missing: pip install ministack cryptography", program.display());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let home = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .env_clear()
            .envs([("BIND_HOST", "127.0.0.1"), ("AUTH", "true"), ("IOT_MTLS_ENABLED", "0"), ("PATH", "/usr/bin:/bin")])
            .env("GATEWAY_PORT", port.to_string())
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut emulator = Emulator { child, port, home, venv };
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(emulator.child.try_wait().unwrap().is_none(), "the emulator ended at once");
            assert!(Instant::now() < until, "the emulator does not listen after a minute");
            std::thread::sleep(Duration::from_millis(50));
        }
        emulator
    }

    /// The address to configure as endpoint, of KMS and of STS.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment of whoever administers `account`: `aws` finds the emulator and the root's keys.
    pub fn environment<'a>(&self, command: &'a mut Command, account: &str) -> &'a mut Command {
        command
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", account)
            .envs([("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "eu-central-1"), ("LC_ALL", "C.UTF-8")])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", self.url())
            .env("PATH", format!("{}:/usr/bin:/bin", self.venv.join("bin").display()))
            .env("HOME", self.home.path())
    }

    /// Runs `aws WORDS` as the root of `account`.
    pub fn aws(&self, account: &str, words: &[&str]) -> Value {
        let mut command = Command::new(self.venv.join("bin/aws"));
        let out = self.environment(command.args(words).args(["--output", "json"]), account).output().unwrap();
        assert!(out.status.success(), "aws {words:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
    }

    /// Runs `aws WORDS` as the customer's administrator.
    pub fn customer(&self, words: &[&str]) -> Value {
        self.aws(CUSTOMER, words)
    }

    /// A new key of `account`; gives its ARN.
    pub fn create_key(&self, account: &str) -> String {
        let made = self.aws(account, &["kms", "create-key", "--description", "hyokfs"]);
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The emulator knows no `kms:EncryptionContext:` condition keys, so a statement that has one never allows anything
/// there. The fake evaluates them (`check.rs`).
pub fn without_context_conditions(document: &Value) -> Value {
    let mut document = document.clone();
    for statement in document["Statement"].as_array_mut().unwrap() {
        statement.as_object_mut().unwrap().remove("Condition");
    }
    document
}
