//! The hardware kit, as a bare-metal image that Multiboot2 starts.
#![cfg_attr(bare_metal, no_std, no_main)]
// The two functions that the entry code calls have fixed names.
#![allow(unsafe_code)]

#[cfg(bare_metal)]
extern crate alloc;

subpage_vmx::bare_metal_program!();
subpage_vmx::one_processor_entry!(subpage_vmx::kit::start::run, "cargo xtask image --kit");
