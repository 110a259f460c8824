//! The header in the repository is the one that the source gives.

use std::path::Path;
use std::{env, fs};

/// `UPDATE_EXPECT=1` writes it anew.
#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let configuration =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("a configuration");
    let bindings = cbindgen::Builder::new()
        .with_crate(root)
        .with_config(configuration)
        .generate()
        .expect("the source is understood");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("text");
    let path = root.join("include/subpage.h");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &made).expect("the header can be written");
    }
    let kept = fs::read_to_string(&path).expect("there is a header");
    assert!(
        kept == made,
        "include/subpage.h is out of date; `UPDATE_EXPECT=1 cargo test -p subpage-c` makes it anew"
    );
}
