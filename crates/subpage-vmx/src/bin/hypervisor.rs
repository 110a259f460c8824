//! The hypervisor, as a bare-metal image that a reset ROM or Multiboot2 starts.
#![cfg_attr(bare_metal, no_std, no_main)]
// The two functions that the entry code calls have fixed names.
#![allow(unsafe_code)]

#[cfg(bare_metal)]
extern crate alloc;

#[cfg(bare_metal)]
subpage_vmx::bare_metal_program!();

#[cfg(bare_metal)]
mod entry {
    use subpage_vmx::boot::{self, start};
    use subpage_vmx::smp;

    /// # Safety
    /// Called once, by the entry code.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn boot_processor_start(magic: u32, information: u32) -> ! {
        let program = start::Program {
            image: boot::image(),
            heap: &super::HEAP,
            start_others: smp::start_others,
        };
        // SAFETY: the entry code has just come here with what the boot loader left.
        unsafe { start::boot_processor(magic, information, &program) }
    }

    /// # Safety
    /// Called once on each other processor, by the entry code.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn application_processor_start(index: usize) -> ! {
        // SAFETY: the entry code has just come here with the processor's number.
        unsafe { start::application_processor(index) }
    }
}

#[cfg(not(bare_metal))]
fn main() {
    eprintln!("this program is a bare-metal image: build it with `cargo xtask bochs build`");
    std::process::exit(2);
}
