//! Write protection for any 128 bytes of a virtual machine's memory.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
pub mod address;
pub mod domain;
pub mod ept;
pub mod exit;
pub mod frames;
pub mod invalidate;
pub mod level;
pub mod rules;
pub mod slots;
pub mod sppt;
pub mod track;
pub mod uapi;
