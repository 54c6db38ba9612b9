//! The customer's commands of docs/aws.md, word by word, against the emulator.

use std::process::Command;

use hyokfs::provider::policy;

use super::ministack::{CUSTOMER, Emulator, VENDOR};

const DOC: &str = include_str!("../../docs/aws.md");

/// The blocks that are marked to be run.
fn blocks() -> Vec<&'static str> {
    DOC.split("<!-- run -->\n```bash\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

#[test]
fn the_customers_commands_run_as_they_are_printed() {
    let blocks = blocks();
    assert!(blocks.len() >= 4, "{}", blocks.len());
    let emulator = Emulator::start();
    let directory = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let out = emulator
            .environment(Command::new("bash").args(["-euo", "pipefail", "-c", script]), CUSTOMER)
            .current_dir(directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{script}\n{text}{}", String::from_utf8_lossy(&out.stderr));
        text
    };
    let key = run(&format!("{}\necho \"$KEY_ARN\"", blocks[0]));
    let arn = key.trim().lines().last().unwrap().to_owned();
    let access = policy::Access::new(format!("awskms:///{arn}").parse().unwrap(), VENDOR).unwrap();
    let template = policy::render(&access, policy::Format::CloudFormation).unwrap();
    std::fs::write(directory.path().join("hyokfs.json"), template).unwrap();
    let mut shown = String::new();
    for block in &blocks[1..] {
        shown += &run(&format!("KEY_ARN={arn}\n{block}"));
    }
    for part in ["RoleArn", "ExternalId", &access.external_id, "arn:aws:iam::222222222222:role/hyokfs"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}
