//! Tells rustc about bare-metal builds: the cfg on targets without an operating system, and the
//! link script of each image.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=link");
    let freestanding = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if freestanding {
        println!("cargo::rustc-cfg=bare_metal");
    }
    if !freestanding && env::var_os("CARGO_CFG_BARE_METAL").is_none() {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    for (image, script) in [
        ("subpage-hypervisor", "image.ld"),
        ("subpage-conformance-image", "image.ld"),
        ("subpage-kit", "image.ld"),
        ("subpage-reset-rom", "rom.ld"),
    ] {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            if !freestanding {
                println!("cargo::rustc-link-arg-bin={image}={argument}");
            }
        }
        // Nothing of the build machine goes into the image.
        let prefix = if freestanding { "" } else { "-Wl," };
        println!("cargo::rustc-link-arg-bin={image}={prefix}--build-id=none");
        println!("cargo::rustc-link-arg-bin={image}={prefix}-T{root}/link/{script}");
    }
}
