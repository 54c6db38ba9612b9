//! With default settings: from the customer's click to the lock within the poll interval (5 s) and 2 s. The click comes
//! right after a probe, so that nearly the whole interval passes before the next one.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use hyokfs::audit::time::parse;
use serde_json::Value;

use crate::aws::Aws;
use crate::azure::Azure;
use crate::common::{PATIENCE, Store, wait_until};
use crate::rig;
use crate::story::lock_after_denial;

/// Poll interval and lock, as the README promises them.
const PROMISE: Duration = Duration::from_secs(7);

/// A thread that should run every 20 ms, and the longest time that it did not.
struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Pulse {
    fn start() -> Pulse {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest
        });
        Pulse { stop, thread }
    }

    fn longest_gap(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// `take` returns when the customer's service has said that it is done; the watch starts before it.
#[track_caller]
fn within_seven_seconds(store: &Store, cloud: &str, take: &dyn Fn(), give: &dyn Fn()) {
    let audit = store.world.path().join("audit.jsonl");
    let mount = store.mount_with(&["--audit-log", audit.to_str().unwrap()]);
    for file in 0..50 {
        fs::write(mount.at(format!("f{file}")), format!("content {file}")).unwrap();
    }
    assert_eq!(rig::status(&mount)["poll_interval"], 5.0, "not the default settings");
    let report = store.world.ok(["drill", "--json", mount.path.to_str().unwrap()]);
    let drill: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(drill["kept"], true, "{drill}");
    println!(
        "{cloud}, `hyokfs drill`: gone {} ms after the lock began, mounted again {} ms after the drill began",
        drill["lock"]["unmounted_ms"], drill["back-ms"]
    );
    fs::read(mount.at("f7")).unwrap();

    // A machine that stands still keeps no time: then once more.
    let (began, done) = loop {
        wait_until("a probe", PATIENCE, || {
            let verdict = &rig::status(&mount)["last_verdict"];
            verdict["verdict"] == "live" && verdict["age"].as_f64().is_some_and(|age| age < 0.5)
        });
        let pulse = Pulse::start();
        let began = SystemTime::now();
        take();
        let done = SystemTime::now();
        rig::wait_state(&mount, "locked");
        let gap = pulse.longest_gap();
        if gap < Duration::from_secs(1) {
            break (began, done);
        }
        println!("the machine stood still for {gap:?}");
        give();
        rig::wait_state(&mount, "unlocked");
    };
    let lock = lock_after_denial(&audit);
    let locked = parse(lock["time"].as_str().unwrap()).unwrap();
    let since = |click: SystemTime| locked.duration_since(click).unwrap_or_default();
    println!(
        "{cloud}, default settings: locked {:.2} s after the click began, {:.2} s after the service had confirmed it",
        since(began).as_secs_f64(),
        since(done).as_secs_f64()
    );
    assert!(since(done) <= PROMISE, "locked only {:?} after the service had confirmed the click", since(done));
    give();
    rig::wait_state(&mount, "unlocked");
    assert_eq!(fs::read(mount.at("f7")).unwrap(), b"content 7");
    mount.umount();
}

#[test]
fn aws_key_disabled_locks_within_seven_seconds() {
    let aws = Aws::new();
    within_seven_seconds(&aws.store, "AWS", &|| drop(aws.kms(&["disable-key"])), &|| drop(aws.kms(&["enable-key"])));
}

#[test]
fn azure_key_disabled_locks_within_seven_seconds() {
    let azure = Azure::new();
    let set = |enabled| azure.fake.world().enable("hyok", enabled);
    within_seven_seconds(&azure.store, "Azure", &|| set(false), &|| set(true));
}
