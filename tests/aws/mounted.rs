//! Real mounts on the fake: what the customer's log shows, and whom a service that does not answer holds up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::fake::world::Fault;
use super::fake::{FakeAws, VENDOR, What};

/// A volume under a key of the fake; unmounted at the end, whatever happens.
struct Mounted {
    fake: FakeAws,
    home: tempfile::TempDir,
}

impl Mounted {
    fn new(granularity: &str) -> Mounted {
        let fake = FakeAws::start();
        let arn = fake.world().create_key_in(VENDOR);
        let made = Mounted { fake, home: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        fs::create_dir(made.mnt()).unwrap();
        let (key, url) = (format!("awskms:///{arn}"), made.fake.url());
        let store = made.store();
        made.hyokfs(&[
            "init",
            "--key",
            &key,
            "--endpoint",
            &url,
            "--granularity",
            granularity,
            store.to_str().unwrap(),
        ]);
        made.mount();
        made
    }

    fn mnt(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    fn store(&self) -> PathBuf {
        self.home.path().join("store")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyokfs"));
        command.args(words).env_clear().env("HOME", self.home.path()).env("XDG_RUNTIME_DIR", self.home.path());
        command.env("XDG_STATE_HOME", self.home.path());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", VENDOR).env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }

    fn hyokfs(&self, words: &[&str]) {
        let out = self.command(words).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn mount(&self) {
        let (url, store, mnt) = (self.fake.url(), self.store(), self.mnt());
        let audit = self.home.path().join("audit.log");
        self.hyokfs(&[
            "mount",
            "--background",
            "--poll-interval",
            "30s",
            "--audit-log",
            audit.to_str().unwrap(),
            "--endpoint",
            &url,
            store.to_str().unwrap(),
            mnt.to_str().unwrap(),
        ]);
    }

    /// Mounts anew; the log begins anew, too.
    fn remount(&self) {
        self.hyokfs(&["unmount", self.mnt().to_str().unwrap()]);
        self.fake.world().log.clear();
        self.mount();
    }

    /// The ids in the customer's log under `hyokfs:file`, and how often each.
    fn logged(&self, operation: &str) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for logged in self.fake.world().log.iter().filter(|logged| logged.operation == operation) {
            if let Some(id) = logged.context.get("hyokfs:file") {
                *ids.entry(id.clone()).or_default() += 1;
            }
        }
        ids
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.fake.world().faults.clear();
        let mnt = self.mnt();
        let _ = self.command(&["unmount", mnt.to_str().unwrap()]).stderr(Stdio::null()).status();
    }
}

/// A program that waits for a key; killed at the end, or nobody could unmount.
struct Cat(Child);

impl Drop for Cat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make(mnt: &Path, dirs: usize, files: usize) {
    for d in 0..dirs {
        let dir = mnt.join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        (0..files).for_each(|f| fs::write(dir.join(format!("f{f}")), format!("{d} {f}")).unwrap());
    }
}

fn read(mnt: &Path, dirs: usize, files: usize) {
    for d in 0..dirs {
        for f in 0..files {
            assert_eq!(fs::read_to_string(mnt.join(format!("d{d}/f{f}"))).unwrap(), format!("{d} {f}"));
        }
    }
}

#[test]
fn the_customer_s_log_names_files_directories_or_nothing() {
    const DIRS: usize = 5;
    const FILES: usize = 7;
    for (granularity, lines) in [("file", DIRS * FILES), ("directory", DIRS), ("volume", 0)] {
        let mounted = Mounted::new(granularity);
        make(&mounted.mnt(), DIRS, FILES);
        let made: BTreeSet<String> = mounted.logged("GenerateDataKey").into_keys().collect();
        mounted.remount();
        read(&mounted.mnt(), DIRS, FILES);
        let opened = mounted.logged("Decrypt");
        assert_eq!(opened.len(), lines, "{granularity}: {opened:?}");
        assert!(opened.values().all(|times| *times == 1), "{granularity}: asked twice: {opened:?}");
        assert!(opened.keys().all(|id| made.contains(id)), "{granularity}: an id that was never made");
        assert!(granularity != "volume" || made.is_empty());
        // The node's own log has the same lines.
        let audit = fs::read_to_string(mounted.home.path().join("audit.log")).unwrap();
        assert!(opened.keys().all(|id| audit.contains(id.as_str())), "{granularity}");
    }
}

#[test]
fn a_hundred_waiting_opens_hold_up_nobody_whose_key_is_here() {
    for granularity in ["file", "directory"] {
        let mounted = Mounted::new(granularity);
        let mnt = mounted.mnt();
        make(&mnt, 2, 3);
        // More than may wait at one time, each in a directory of its own.
        const WAITING: usize = 100;
        for n in 0..WAITING {
            fs::create_dir(mnt.join(format!("w{n}"))).unwrap();
            fs::write(mnt.join(format!("w{n}/f")), "w").unwrap();
        }
        mounted.remount();
        let open = fs::File::options().read(true).write(true).open(mnt.join("d0/f0")).unwrap();
        // Listed, so fetched ahead, but not opened.
        assert_eq!(fs::read_dir(mnt.join("d1")).unwrap().count(), 3);
        std::thread::sleep(Duration::from_millis(500));
        mounted.fake.world().faults.push_back(Fault {
            operation: Some("Decrypt".to_owned()),
            times: None,
            what: What::Hang(Duration::from_secs(30)),
        });
        let mut cats: Vec<_> = (0..WAITING)
            .map(|n| {
                let mut cat = Command::new("cat");
                cat.arg(mnt.join(format!("w{n}/f"))).stdout(Stdio::null()).stderr(Stdio::null());
                Cat(cat.spawn().unwrap())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        use std::os::unix::fs::FileExt;
        open.write_all_at(b"written", 0).unwrap();
        open.sync_all().unwrap();
        let mut bytes = [0; 7];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"written");
        // Never opened in this mount; its key is here.
        assert_eq!(fs::read_to_string(mnt.join("d1/f2")).unwrap(), "1 2");
        if granularity == "directory" {
            fs::write(mnt.join("d1/new"), "new").unwrap();
        }
        for n in 0..10 {
            fs::metadata(mnt.join(format!("w{n}/f"))).unwrap();
            fs::rename(mnt.join(format!("w{n}")), mnt.join(format!("x{n}"))).unwrap();
        }
        fs::create_dir(mnt.join("new directory")).unwrap();
        let took = began.elapsed();
        let waiting = cats.iter_mut().map(|cat| usize::from(cat.0.try_wait().unwrap().is_none())).sum::<usize>();
        assert!(took < Duration::from_secs(4), "{granularity}: {took:?}, {waiting} wait");
        assert_eq!(waiting, WAITING, "the control: they wait ({took:?})");
    }
}
