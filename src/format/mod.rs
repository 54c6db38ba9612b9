//! On-disk bytes: file header, sealed page, names, directory records, volume record. Pure: no I/O.

pub mod ids;
pub mod page;

pub use ids::{DirId, FileId, VolumeId};
