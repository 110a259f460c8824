//! A bare-metal image; `docs/hypervisor.md` says how it is built.
fn main() {
    eprintln!("this program is a bare-metal image: build it with `cargo xtask bochs build`");
    std::process::exit(2);
}
