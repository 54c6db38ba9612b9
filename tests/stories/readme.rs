//! The README's sections "AWS" and "Azure", word by word: from nothing to a mounted volume, the customer's no, the way
//! back. Each block is marked with its cloud and with who types it:
//!
//! - `values`: what one party is told or chooses; the line's value is replaced by what it is here,
//! - `customer`, `vendor`: the administrators, with `aws` (the emulator) or `az` (`az.py`, against the fake),
//! - `node`: the vendor's machine, with the real `hyokfs`.
//!
//! Not tried by this: the machine's metadata service, real directories, Azure Resource Manager.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{PATIENCE, World, both, mounted, wait_until};
use crate::fake_azure::{FakeAzure, Fault, TENANT};
use crate::ministack::{CUSTOMER, Emulator, VENDOR, venv};

const README: &str = include_str!("../../README.md");

/// The blocks of a cloud, in order: who types it, and the text.
fn blocks(cloud: &str) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let mut rest = README;
    while let Some(at) = rest.find("```sh ") {
        let (info, text) = rest[at + 6..].split_once('\n').unwrap();
        let (text, after) = text.split_once("\n```").unwrap();
        if let Some(who) = info.strip_prefix(cloud) {
            found.push((who.trim(), text));
        }
        rest = after;
    }
    found
}

/// One party: a directory, an environment, and the variables that its blocks have set.
struct Party {
    dir: PathBuf,
    environment: Vec<(String, String)>,
    variables: BTreeMap<String, String>,
}

impl Party {
    fn new(world: &World, name: &str, environment: &[(&str, &str)]) -> Party {
        let dir = world.path().join(name);
        fs::create_dir(&dir).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Party { dir, environment, variables: BTreeMap::new() }
    }

    /// Types a block; gives what it printed.
    #[track_caller]
    fn types(&mut self, world: &World, text: &str) -> String {
        let kept = self.dir.join("variables");
        // Only names in capitals are the blocks' own; each party starts without any.
        let script = format!(
            "{text}\ncompgen -v | grep -xE '[A-Z]+(_[A-Z]+)?' | while read -r n; do printf '%s\\t%s\\n' \"$n\" \"${{!n-}}\"; done > {}",
            kept.display()
        );
        let mut bash = world.command("bash");
        bash.args(["-euo", "pipefail", "-c", &script]).current_dir(&self.dir);
        bash.envs(self.environment.iter().map(|(name, value)| (name, value))).envs(&self.variables);
        let out = world.output(&mut bash);
        assert!(out.status.success(), "{text}\n{}", both(&out));
        for line in fs::read_to_string(kept).unwrap().lines() {
            // The others are the shell's own, some of them of several lines.
            let Some((name, value)) = line.split_once('\t') else { continue };
            if text.contains(&format!("{name}=")) {
                self.variables.insert(name.to_owned(), value.to_owned());
            }
        }
        String::from_utf8(out.stdout).unwrap()
    }

    /// Takes the values of a block: for each name the one here.
    #[track_caller]
    fn is_told(&mut self, text: &str, values: &[(&str, &str)]) {
        for line in text.lines() {
            let (name, placeholder) = line.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
            assert!(!placeholder.trim().is_empty(), "{line}");
            let value =
                values.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("who tells {name}?")).1;
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// A directory that comes first on everybody's PATH: the program, and `tool` as a script.
fn tools(world: &World, tool: &str, script: &str) -> String {
    let dir = world.path().join("bin");
    fs::create_dir(&dir).unwrap();
    symlink(env!("CARGO_BIN_EXE_hyokfs"), dir.join("hyokfs")).unwrap();
    fs::write(dir.join(tool), script).unwrap();
    fs::set_permissions(dir.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display(), venv().join("bin").display())
}

fn state(world: &World, mountpoint: &Path) -> String {
    let out = world.run([OsStr::new("status"), OsStr::new("--json"), mountpoint.as_os_str()]);
    let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    status["state"].as_str().unwrap_or_default().to_owned()
}

fn becomes(world: &World, mountpoint: &Path, wanted: &str) {
    wait_until(&format!("{} is {wanted}", mountpoint.display()), PATIENCE, || state(world, mountpoint) == wanted);
}

/// What must be so between the blocks that every section ends with: mounted, taken, given, unmounted.
struct Ending<'a> {
    world: &'a World,
    mountpoint: PathBuf,
}

impl Ending<'_> {
    fn mounted(&self) {
        assert_eq!(mounted(&self.mountpoint).as_deref(), Some("fuse.hyokfs"));
        assert_eq!(fs::read_to_string(self.mountpoint.join("file")).unwrap(), "hello\n");
    }

    fn taken(&self) {
        becomes(self.world, &self.mountpoint, "locked");
        assert_eq!(fs::read_dir(&self.mountpoint).unwrap().count(), 0);
        assert_eq!(fs::metadata(&self.mountpoint).unwrap().permissions().mode() & 0o7777, 0);
    }

    fn given(&self) {
        becomes(self.world, &self.mountpoint, "unlocked");
        self.mounted();
    }

    /// Types one of the blocks that every section ends with, and looks at what comes of it.
    #[track_caller]
    fn goes_on(&self, who: &str, block: &str, customer: &mut Party, node: &mut Party) {
        match who {
            "customer take" => {
                self.mounted();
                customer.types(self.world, block);
                self.taken();
            }
            "customer give" => {
                customer.types(self.world, block);
                self.given();
            }
            "node end" => assert!(node.types(self.world, block).contains("hello")),
            other => panic!("README.md: a block of `{other}`?"),
        }
    }
}

#[test]
fn aws_from_nothing_to_a_mounted_volume() {
    let emulator = Emulator::start();
    let world = World::new();
    // The emulator evaluates no condition on the encryption context. The template that `hyokfs policy` printed must have
    // it; it is taken out on the way.
    let real = venv().join("bin/aws");
    let path = tools(
        &world,
        "aws",
        &format!(
            "#!/bin/bash\nset -e\nfor word; do if [ \"$word\" = file://hyokfs.json ]; then\n  grep -q kms:EncryptionContext hyokfs.json\n  \
             jq 'walk(if type == \"object\" and (.Condition | tostring | contains(\"kms:EncryptionContext\")) then del(.Condition) else . end)' hyokfs.json > hyokfs.json.new\n  \
             mv hyokfs.json.new hyokfs.json\nfi; done\nexec {} \"$@\"\n",
            real.display()
        ),
    );
    let url = emulator.url();
    let common = [
        ("PATH", path.as_str()),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL", &url),
        ("HYOKFS_ENDPOINT", &url),
        ("HYOKFS_STS_ENDPOINT", &url),
    ];
    let of = |account| [&common[..], &[("AWS_ACCESS_KEY_ID", account)]].concat();
    let mut customer = Party::new(&world, "customer", &of(CUSTOMER));
    let mut vendor = Party::new(&world, "vendor", &of(VENDOR));
    // What stands before: the role that the vendor's machines run under.
    let node_role = format!("arn:aws:iam::{VENDOR}:role/hyokfs-node");
    let own = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":"arn:aws:iam::{VENDOR}:root"}},"Action":"sts:AssumeRole"}}]}}"#
    );
    emulator.aws(VENDOR, &["iam", "create-role", "--role-name", "hyokfs-node", "--assume-role-policy-document", &own]);
    let session = emulator
        .aws(VENDOR, &["sts", "assume-role", "--role-arn", &node_role, "--role-session-name", "node"])["Credentials"]
        .clone();
    let text = |field: &str| session[field].as_str().unwrap().to_owned();
    let (id, secret, token) = (text("AccessKeyId"), text("SecretAccessKey"), text("SessionToken"));
    let machine =
        [&common[..], &[("AWS_ACCESS_KEY_ID", &id), ("AWS_SECRET_ACCESS_KEY", &secret), ("AWS_SESSION_TOKEN", &token)]]
            .concat();
    let mut node = Party::new(&world, "node", &machine);

    let ending = Ending { world: &world, mountpoint: node.dir.join("acme") };
    let mut told: Vec<(String, String)> = vec![("VENDOR_ROLE".to_owned(), node_role)];
    let mut seen = Vec::new();
    for (who, block) in blocks("aws") {
        seen.push(who);
        let values: Vec<(&str, &str)> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match who {
            "values customer" => customer.is_told(block, &values),
            "values vendor" => {
                vendor.is_told(block, &values);
                node.is_told(block, &values);
            }
            "customer" => {
                let printed = customer.types(&world, block);
                for (output, name) in [("Key", "KEY"), ("RoleArn", "CUSTOMER_ROLE"), ("ExternalId", "EXTERNAL_ID")] {
                    let line = printed.lines().find_map(|line| line.strip_prefix(output)?.strip_prefix('\t'));
                    told.push((name.to_owned(), line.unwrap_or_else(|| panic!("no {output}: {printed}")).to_owned()));
                }
            }
            "vendor" => drop(vendor.types(&world, block)),
            "node" => drop(node.types(&world, block)),
            other => ending.goes_on(other, block, &mut customer, &mut node),
        }
    }
    let order = [
        "values customer",
        "customer",
        "values vendor",
        "vendor",
        "node",
        "customer take",
        "customer give",
        "node end",
    ];
    assert_eq!(seen, order);
    assert_eq!(mounted(&ending.mountpoint), None);
}

#[test]
fn azure_from_nothing_to_a_mounted_volume() {
    let fake = FakeAzure::start().unwrap();
    let world = World::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stories/az.py");
    let path = tools(&world, "az", &format!("#!/bin/sh\nexec {}/bin/python -B {script} \"$@\"\n", venv().display()));
    // Nothing is there yet: no key, no service principal, no permission.
    fake.world().principal = false;
    fake.world().fail(Fault::Forbidden("ForbiddenByRbac".to_owned()));
    let ca = world.path().join("ca.pem");
    fs::write(&ca, fake.ca_pem()).unwrap();
    let (control, url) = (format!("{}/control", fake.plain_url()), fake.url());
    let identity = format!("{}/msi/token", fake.plain_url());
    let az_state = world.path().join("az.json");
    let az = [("PATH", path.as_str()), ("AZ_CONTROL", control.as_str()), ("AZ_STATE", az_state.to_str().unwrap())];
    let mut customer = Party::new(&world, "customer", &[&az[..], &[("AZ_TENANT", TENANT)]].concat());
    let mut vendor =
        Party::new(&world, "vendor", &[&az[..], &[("AZ_TENANT", "bbbbbbbb-0000-0000-0000-000000000001")]].concat());
    let mut node = Party::new(
        &world,
        "node",
        &[
            ("PATH", path.as_str()),
            ("HYOKFS_ENDPOINT", &url),
            ("HYOKFS_CA_FILE", ca.to_str().unwrap()),
            ("AZURE_AUTHORITY_HOST", &url),
            ("IDENTITY_ENDPOINT", &identity),
            ("IDENTITY_HEADER", "fake"),
        ],
    );

    let ending = Ending { world: &world, mountpoint: node.dir.join("acme") };
    // The fake knows one vault.
    let mut told: Vec<(String, String)> = vec![("VAULT".to_owned(), "v1".to_owned())];
    let mut seen = Vec::new();
    for (who, block) in blocks("azure") {
        seen.push(who);
        let values: Vec<(&str, &str)> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match who {
            "values customer" => customer.is_told(block, &values),
            "values vendor" => node.is_told(block, &values),
            "vendor" => {
                let printed = vendor.types(&world, block);
                for name in ["APP", "IDENTITY"] {
                    let value = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                    told.push((name.to_owned(), value.unwrap_or_else(|| panic!("no {name}: {printed}")).to_owned()));
                }
            }
            "customer" => {
                let printed = customer.types(&world, block);
                told.push(("TENANT".to_owned(), printed.lines().last().unwrap().to_owned()));
            }
            "node" => drop(node.types(&world, block)),
            other => ending.goes_on(other, block, &mut customer, &mut node),
        }
    }
    let order = [
        "vendor",
        "values customer",
        "customer",
        "values vendor",
        "node",
        "customer take",
        "customer give",
        "node end",
    ];
    assert_eq!(seen, order);
    assert_eq!(mounted(&ending.mountpoint), None);
}

/// The shim is no rubber stamp.
#[test]
fn the_az_shim_refuses_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stories/az.py");
    for words in [
        "keyvault delete --name v1",
        "group create --name hyok --location westeurope --tags a",
        "group create --name hyok",
        "group create --name hyok --name hyok --location westeurope",
        "keyvault key create --vault-name v1 --name hyok --kty RSA --size 1024 --ops wrapKey unwrapKey",
        "role assignment create --role Owner --scope / --assignee-object-id a --assignee-principal-type User",
        "account show --query tenantID --output tsv",
    ] {
        let out = Command::new(venv().join("bin/python"))
            .args(["-B", script])
            .args(words.split(' '))
            .env("AZ_CONTROL", "http://127.0.0.1:9/")
            .env("AZ_STATE", dir.path().join("state"))
            .env("AZ_TENANT", "t")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("az (shim)"), "{words}: {said}");
    }
}
