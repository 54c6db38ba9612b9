//! The unit file is one that systemd takes, and one that leaves the mount visible.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/hyokfs@.service")).unwrap()
}

/// What `systemd-analyze verify` says about a unit with the program of this build.
fn verify(text: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hyokfs@check.service");
    fs::write(&path, text.replace("/usr/bin/hyokfs", env!("CARGO_BIN_EXE_hyokfs"))).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&path)
        .env("SYSTEMD_LOG_LEVEL", "warning")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success() && said.trim().is_empty(), said)
}

#[test]
fn systemd_takes_the_unit() {
    let (fine, said) = verify(&unit());
    assert!(fine, "{said}");
    // The check itself sees what is wrong.
    let (fine, _) = verify(&unit().replace("KillMode=control-group", "KillMode=nonsense"));
    assert!(!fine, "systemd-analyze doesn't see a wrong value");
    let (fine, _) = verify(&unit().replace("OOMScoreAdjust=", "OOMScoreAdjusted="));
    assert!(!fine, "systemd-analyze doesn't see an unknown option");
}

#[test]
fn the_unit_has_no_mount_namespace() {
    let namespaces = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "MountAPIVFS",
        "MountFlags",
        "MountImages",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
        "RestrictFileSystems",
        "LoadCredential",
        "SetCredential",
    ];
    for line in unit().lines().filter(|line| !line.starts_with('#')) {
        let name = line.split('=').next().unwrap();
        assert!(!namespaces.contains(&name), "{line}: gives the daemon a mount namespace, so nobody sees its mount");
    }
}

#[test]
fn the_unit_stops_cleanly() {
    let text = unit();
    for line in ["Type=notify", "KillMode=control-group", "Restart=on-failure", "LimitCORE=0"] {
        assert!(text.lines().any(|l| l == line), "{line} is missing");
    }
    assert!(!text.contains("ExecStop"), "SIGTERM is the clean end; a command could fail");
}

#[test]
fn the_fstab_lines_are_whole() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/fstab.example")).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).collect();
    assert!(!lines.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("fstab");
    fs::write(&table, lines.join("\n") + "\n").unwrap();
    let output = Command::new("findmnt").args(["--fstab", "--noheadings", "--tab-file"]).arg(&table).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("fuse.hyokfs").count(), lines.len());
}
