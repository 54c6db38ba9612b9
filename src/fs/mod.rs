//! POSIX semantics over inodes, dentries and handles.
