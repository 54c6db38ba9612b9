//! The locks of the page file, in one place: `tests/schedules` compiles the page file against locks that try every order
//! of the threads' steps.

pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
