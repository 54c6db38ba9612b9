//! `hyokfs demo`: the whole story in a minute, told with the commands that a person would type.

use std::fs;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::CliError;
use super::args::DemoArgs;
use crate::supervisor::control::{self, Reply, Request};
use crate::supervisor::status::Status;

const LETTER: &str = "Dear customer, this line is stored on a machine that you do not own.\n";
const POLL: Duration = Duration::from_secs(1);
/// What a lock may take: the poll interval and 2 s; the rest is room for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs the story; fails if any step did.
pub fn run(args: &DemoArgs) -> Result<(), CliError> {
    let dir = scratch()?;
    let result = Story { dir: dir.clone(), colour: std::io::stdout().is_terminal(), step: 0 }.tell();
    if !args.keep {
        clean(&dir);
    } else {
        println!("kept: {}", dir.display());
    }
    result
}

fn scratch() -> Result<PathBuf, CliError> {
    let mut bytes = [0; 6];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CliError::Refused("no random numbers from the system".into()))?;
    let name: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = std::env::temp_dir().join(format!("hyokfs-demo-{name}"));
    fs::create_dir(&dir).map_err(|source| CliError::Path { path: dir.clone(), source })?;
    Ok(dir)
}

fn clean(dir: &Path) {
    let mountpoint = dir.join("mnt");
    let _ = command(dir).arg("unmount").arg(&mountpoint).stdout(Stdio::null()).stderr(Stdio::null()).status();
    // Never across a mount: if the unmount failed, what is on it stays.
    if matches!(crate::fuse::mount::top_of(&mountpoint), Ok(crate::fuse::mount::Top::Bare)) {
        let _ = fs::remove_dir_all(dir);
    } else {
        eprintln!("hyokfs: {} could not be unmounted and is left as it is", mountpoint.display());
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env("XDG_STATE_HOME", dir.join("state")).env("HYOKFS_LOG", "warn").stdin(Stdio::null());
    command
}

struct Story {
    dir: PathBuf,
    colour: bool,
    step: usize,
}

impl Story {
    fn tell(&mut self) -> Result<(), CliError> {
        let (store, mountpoint) = (self.dir.join("store"), self.dir.join("mnt"));
        let keystore = self.dir.join("customer-keys");
        let key = format!("local:{}", keystore.display());
        fs::create_dir(&mountpoint).map_err(|source| CliError::Path { path: mountpoint.clone(), source })?;

        self.say("The customer makes a key. It stays with them: hyokfs may only ask it to wrap and unwrap.");
        self.hyokfs(&["key", "create", &path(&keystore)])?;

        self.say("The vendor makes a volume under that key and mounts it.");
        self.hyokfs(&["init", "--key", &key, &path(&store)])?;
        self.hyokfs(&["mount", "--background", "--poll-interval", "1s", &path(&store), &path(&mountpoint)])?;

        self.say("Programs write files, as on any directory.");
        let written = write_files(&mountpoint)?;
        println!("   {} files, each with a checksum kept for later", written.len());

        self.say("What programs see, and what lies on the disk:");
        self.show_both(&mountpoint, &store)?;

        self.say("The customer takes the key away.");
        let clicked = Instant::now();
        self.hyokfs(&["key", "disable", &path(&keystore)])?;
        let status = self.wait(&mountpoint, "locked")?;
        let took = clicked.elapsed();
        println!(
            "   locked {:.2} s after the click (the key is probed every {} s)",
            took.as_secs_f64(),
            POLL.as_secs()
        );
        if let Some(lock) = &status.last_lock {
            println!("   {}", super::control::steps(lock));
        }

        self.say("Nothing is readable now.");
        self.nothing_readable(&mountpoint, &status)?;

        self.say("The customer gives the key back. Nobody does anything on the vendor's side.");
        let clicked = Instant::now();
        self.hyokfs(&["key", "enable", &path(&keystore)])?;
        self.wait(&mountpoint, "unlocked")?;
        println!("   mounted again {:.2} s after the click", clicked.elapsed().as_secs_f64());

        self.say("Every checksum again:");
        for (file, sum) in &written {
            if checksum(file)? != *sum {
                return Err(CliError::Refused(format!("{} is not what was written", file.display())));
            }
        }
        println!("   {} of {} files intact", written.len(), written.len());

        self.say("The volume is unmounted and everything of this demonstration is removed.");
        self.hyokfs(&["unmount", &path(&mountpoint)])?;
        if self.colour {
            println!("\n\x1b[1;32mAll steps did what they promise.\x1b[0m");
        } else {
            println!("\nAll steps did what they promise.");
        }
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.step += 1;
        if self.colour {
            println!("\n\x1b[1;36m{}. {text}\x1b[0m", self.step);
        } else {
            println!("\n{}. {text}", self.step);
        }
    }

    /// Runs one command of ours and shows it.
    fn hyokfs(&self, words: &[&str]) -> Result<(), CliError> {
        let shown = words.join(" ").replace(&path(&self.dir), "…");
        if self.colour {
            println!("   \x1b[2m$ hyokfs {shown}\x1b[0m");
        } else {
            println!("   $ hyokfs {shown}");
        }
        let output = command(&self.dir)
            .args(words)
            .output()
            .map_err(|error| CliError::Refused(format!("cannot run hyokfs itself: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(CliError::Refused(format!("`hyokfs {shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    fn wait(&self, mountpoint: &Path, state: &str) -> Result<Status, CliError> {
        let begun = Instant::now();
        loop {
            if let Ok(Reply::Status(status)) = control::call(mountpoint, Request::Status, LIMIT)
                && status.state == state
            {
                return Ok(*status);
            }
            if begun.elapsed() > LIMIT {
                return Err(CliError::Refused(format!("the volume was not {state} within {} s", LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn show_both(&self, mountpoint: &Path, store: &Path) -> Result<(), CliError> {
        let plain = mountpoint.join("letter.txt");
        let size = fs::metadata(&plain).map_err(|source| CliError::Path { path: plain.clone(), source })?.len();
        println!("   {:<44} {}", "letter.txt", LETTER.trim());
        println!("   {:<44} {size} bytes", "");
        let mut shown = 0;
        for file in files_below(store)? {
            let bytes = read(&file)?;
            if contains(&bytes, LETTER.trim().as_bytes()) || file.as_os_str().as_bytes().ends_with(b"letter.txt") {
                return Err(CliError::Refused(format!("plaintext in {}", file.display())));
            }
            if bytes.len() > 1100 && shown < 2 {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let hex: Vec<String> = bytes[1024..1048].iter().map(|byte| format!("{byte:02x}")).collect();
                println!("   {:<44} {}…", cut(&name, 42), hex.join(" "));
                shown += 1;
            }
        }
        println!("   no file of the store holds a word of the letter");
        Ok(())
    }

    fn nothing_readable(&self, mountpoint: &Path, status: &Status) -> Result<(), CliError> {
        match fs::read(mountpoint.join("letter.txt")) {
            Ok(_) => return Err(CliError::Refused("the letter can still be read".into())),
            Err(error) => println!("   $ cat letter.txt: {error}"),
        }
        if status.keys_cached != 0 {
            return Err(CliError::Refused(format!("{} keys are still in memory", status.keys_cached)));
        }
        println!("   keys in memory: 0");
        Ok(())
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn cut(name: &str, most: usize) -> String {
    if name.chars().count() <= most { name.to_owned() } else { name.chars().take(most - 1).chain(['…']).collect() }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(file).map_err(|source| CliError::Path { path: file.to_owned(), source })
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let at = |source| CliError::Path { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let kind = entry.file_type().map_err(at)?;
        if kind.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn checksum(file: &Path) -> Result<Vec<u8>, CliError> {
    let at = |source| CliError::Path { path: file.to_owned(), source };
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut open = fs::File::open(file).map_err(at)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match open.read(&mut buffer).map_err(at)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            length => context.update(&buffer[..length]),
        }
    }
}

/// A letter, a file of some MiB, and a tree of small ones.
fn write_files(mountpoint: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, CliError> {
    let mut files = vec![(mountpoint.join("letter.txt"), LETTER.repeat(40).into_bytes())];
    files.push((
        mountpoint.join("ledger.bin"),
        (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
    ));
    for i in 0..20 {
        let name = mountpoint.join("records").join(format!("2026-{:02}", i % 4 + 1)).join(format!("record-{i:02}.txt"));
        files.push((name, format!("record {i}\n{LETTER}").into_bytes()));
    }
    let mut sums = Vec::new();
    for (file, bytes) in files {
        let at = |source| CliError::Path { path: file.clone(), source };
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(at)?;
        }
        fs::write(&file, bytes).map_err(at)?;
        let sum = checksum(&file)?;
        sums.push((file, sum));
    }
    Ok(sums)
}
