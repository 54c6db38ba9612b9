//! What a mount is told: the first line is the options of /etc/fstab, the rest is the configuration file. What is taken
//! must be usable: no time that no clock can reach, no size that wraps around.
#![no_main]

use std::time::{Duration, Instant};

use hyokfs::cli::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (opts, file) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(config) = config::parse(opts, file) else { return };
    // The volume's record limits the poll interval and the lease.
    for time in [config.flush_deadline(), config.settings.call_deadline()] {
        // Two such times are added in places.
        assert!(Instant::now().checked_add(time).and_then(|then| then.checked_add(time)).is_some(), "{time:?}");
    }
    assert!((Duration::from_millis(100)..=Duration::from_secs(600)).contains(&config.key_wait()));
    if let Some(size) = config.options.audit_size {
        assert!((1..1024).contains(&size), "an audit file of {size} MiB");
    }
    // The command line comes first: the same options without the file change nothing that they set.
    if let Ok(alone) = config::parse(opts, "") {
        assert_eq!(alone.kernel.read_only, config.kernel.read_only);
        assert!(alone.options.lease.is_none() || alone.options.lease == config.options.lease);
    }
});
