//! D11 to D32: protection silently lost or not applied.

mod between_stores;
mod lifetime;
mod paths;
mod tables;
