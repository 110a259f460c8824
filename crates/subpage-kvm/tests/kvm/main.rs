//! Guests on KVM. Where there is none, each test says so and passes.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used)] // a test says by panicking that something failed

mod arming;
mod atomics;
mod basics;
mod clock;
mod differential;
mod edges;
mod endings;
mod exceptions;
mod far_calls;
mod features;
mod fetches;
mod gdb;
mod gdb_packets;
mod guest;
mod halves;
mod held;
mod held_steps;
mod hostile;
mod in_force;
mod live_tables;
mod multiboot;
mod names;
mod privilege;
mod random;
mod remote;
mod rules;
mod scenarios;
mod self_test;
mod slots;
mod snapshot;
mod stepper;
mod steps;
mod store_forms;
mod strings;
mod tracking;
mod unable;
mod walks;
mod watch;
