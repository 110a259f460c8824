//! The image: `docs/hypervisor.md` says how it is built. All of it is in the library.
#![cfg_attr(bare_metal, no_std, no_main)]

#[cfg(bare_metal)]
use subpage_guest as _;

#[cfg(not(bare_metal))]
fn main() {
    eprintln!("this program is a bare-metal image: build it with `cargo xtask bochs build`");
    std::process::exit(2);
}
