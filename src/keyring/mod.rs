//! Unwrapped keys and the bridge to the key services.
