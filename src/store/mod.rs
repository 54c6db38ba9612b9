//! Descriptors inside the store directory.

pub mod disk;

pub use disk::{Disk, RealDisk};
