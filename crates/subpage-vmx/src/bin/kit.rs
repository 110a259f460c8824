//! The hardware kit, as a bare-metal image that Multiboot2 starts.
#![cfg_attr(bare_metal, no_std, no_main)]
// The two functions that the entry code calls have fixed names.
#![allow(unsafe_code)]

#[cfg(bare_metal)]
extern crate alloc;

#[cfg(bare_metal)]
subpage_vmx::bare_metal_program!();

#[cfg(bare_metal)]
mod entry {
    use subpage_vmx::boot;
    use subpage_vmx::kit::start;
    use subpage_vmx::processor::control;

    /// # Safety
    /// Called once, by the entry code.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn boot_processor_start(magic: u32, information: u32) -> ! {
        // SAFETY: the entry code has just come here with what the boot loader left.
        unsafe { start::run(magic, information, boot::image(), &super::HEAP) }
    }

    /// Nobody starts other processors.
    #[unsafe(no_mangle)]
    extern "C" fn application_processor_start(_: u64) -> ! {
        loop {
            control::halt();
        }
    }
}

#[cfg(not(bare_metal))]
fn main() {
    eprintln!("this program is a bare-metal image: build it with `cargo xtask image --kit`");
    std::process::exit(2);
}
