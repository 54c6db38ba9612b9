//! `hyokfs audit`.

use std::path::Path;
use std::time::SystemTime;

use super::CliError;
use super::args::AuditCommand;
use crate::audit::{self, Expect, PublicKey, Show, Shown, Since};

/// Runs one of the commands.
pub fn run(command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Show { since, follow, json, file } => show(since.as_deref(), follow, json, &file),
        AuditCommand::Verify { public_key, expect_seq, json, file } => {
            verify(public_key.as_deref(), expect_seq, json, &file)
        }
        AuditCommand::Keygen { file } => {
            audit::keygen(&file)?;
            println!(
                "private key: {0}\npublic key:  {0}.pub   give this one to whoever checks the log",
                file.display()
            );
            Ok(())
        }
    }
}

fn since(text: Option<&str>) -> Result<Since, CliError> {
    let Some(text) = text else { return Ok(Since::Start) };
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(Since::Time(SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH)));
    }
    audit::time::parse(text).map(Since::Time).ok_or_else(|| {
        CliError::Refused(format!("--since {text}: write a time (2026-01-31T12:00:00Z) or a span (90m)"))
    })
}

fn show(from: Option<&str>, follow: bool, json: bool, file: &Path) -> Result<(), CliError> {
    let mut damaged = 0_u64;
    audit::show(file, Show { since: since(from)?, follow }, |line| {
        match line {
            Some(Shown::Record(_, line)) if json => println!("{line}"),
            Some(Shown::Record(record, _)) => println!("{}", record.to_text()),
            Some(Shown::Damaged(_)) => damaged += 1,
            None => {}
        }
        true
    })?;
    if damaged > 0 {
        eprintln!("hyokfs: {damaged} lines are no records; `hyokfs audit verify` tells what happened to them");
    }
    Ok(())
}

fn verify(key: Option<&Path>, seq: Option<u64>, json: bool, file: &Path) -> Result<(), CliError> {
    let public = key.map(PublicKey::load).transpose()?;
    let report = audit::verify(&audit::files(file)?, public.as_ref(), &Expect { seq, hash: None })?;
    let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    if json {
        let report = serde_json::json!({
            "intact": report.is_intact(), "records": report.records, "first-seq": report.first_seq,
            "last-seq": report.last_seq, "last-time": report.last_time, "signed-through": report.signed_through,
            "torn": report.torn, "dropped": report.dropped, "closed": report.closed, "problems": problems,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{} records, {} to {}, the last of {}",
            report.records, report.first_seq, report.last_seq, report.last_time
        );
        match (public.is_some(), report.signed_through) {
            (true, Some(seq)) => println!("signed up to record {seq}"),
            (true, None) => println!("nothing is signed by this key"),
            (false, _) => println!("signatures were not checked (give --public-key)"),
        }
        problems.iter().for_each(|problem| println!("PROBLEM {problem}"));
    }
    if report.is_intact() {
        return Ok(());
    }
    Err(CliError::Refused(format!("the audit log is not intact: {} problems", report.problem_count)))
}
