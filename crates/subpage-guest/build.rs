//! Passes the linker script of the image, if it is built bare-metal.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=image.ld");
    println!("cargo::rustc-check-cfg=cfg(bare_metal)");
    let no_operating_system = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if no_operating_system {
        println!("cargo::rustc-cfg=bare_metal");
    }
    if env::var_os("CARGO_CFG_BARE_METAL").is_none() && !no_operating_system {
        return;
    }
    let directory = env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the directory");
    let script = Path::new(&directory).join("image.ld");
    println!("cargo::rustc-link-arg-bin=subpage-guest=-T{}", script.display());
    if !no_operating_system {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bin=subpage-guest={argument}");
        }
        println!(
            "cargo::rustc-link-arg-bin=subpage-guest=-Wl,--build-id=none,-z,max-page-size=4096"
        );
    }
}
