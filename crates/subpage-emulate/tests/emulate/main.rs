//! Emulation of stores, run natively: what is emulated is compared with what this processor does.
#![allow(clippy::unwrap_used)]
// a test says by panicking that something failed
// Tables of forms line up; rules stand as the manual words them; numbers are known to fit.
#![allow(clippy::redundant_closure_for_method_calls, clippy::nonminimal_bool)]
#![allow(clippy::cast_possible_truncation)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod atomicity;
mod delivery;
mod far_calls;
mod faults;
mod fetching;
mod flat;
mod hostile;
mod machine;
mod modes;
mod native;
mod paging;
mod stores;
mod strings;
mod tables;
mod wide_stores;
