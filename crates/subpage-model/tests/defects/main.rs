//! One test for each defect D1 to D51 of the KVM series that code can have (contract C9).
//!
//! `docs/defects.md` lists all 51 with what prevents them; the numbers are those of `docs/spp.md`
//! section 3. The series' own self-test is here too.
#![forbid(unsafe_code)]

mod cost;
mod exits;
mod fail_open;
mod guest;
mod host_memory;
mod requests;
mod selftest;
mod watched;
