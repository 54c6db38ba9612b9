//! Descriptors inside the store directory: the directory itself, its lock file, the volume record, and the disk that a
//! ciphertext file is.

pub mod disk;
mod lock;
mod root;

pub use disk::{Disk, RealDisk};
pub use lock::{LOCK_FILE, Owner, StoreLock};
pub use root::{RECORD, RECORD_BACKUP, Store, StoreError, open_beneath};
