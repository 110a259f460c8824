//! Placeholder documentation, replaced with the first module.
#![forbid(unsafe_code)]
