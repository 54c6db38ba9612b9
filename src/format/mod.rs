//! On-disk bytes: file header, sealed page, names, directory records, volume record. Pure: no I/O.
//! `docs/format.md` describes them byte by byte.

pub mod dirrec;
pub mod header;
pub mod ids;
pub mod name;
pub mod page;
pub mod slots;
pub mod small;
pub mod volume;

pub use ids::{DirId, FileId, VolumeId};
