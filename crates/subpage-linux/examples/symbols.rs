//! Prints what a kernel's image says: `cargo run --release -p subpage-linux --example symbols -- IMAGE [NAME]`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use subpage_linux::{Kallsyms, KernelImage};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("give the path of a kernel")?);
    let start = Instant::now();
    let image = KernelImage::open(&path)?;
    println!("{}", image.banner());
    println!("{:?}, read in {:?}", image.packaging(), start.elapsed());
    let start = Instant::now();
    let kallsyms = Kallsyms::read(&image)?;
    println!("{} symbols, read in {:?}", kallsyms.count(), start.elapsed());
    for name in arguments {
        for symbol in kallsyms.named(&name.to_string_lossy()) {
            println!("{symbol:?}");
        }
    }
    Ok(())
}
