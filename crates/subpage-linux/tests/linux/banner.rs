//! Whether a kernel's own memory is told from another's.

use subpage_linux::{Banner, Kallsyms, KernelImage, Memory, RuntimeAddress, Slide};

use crate::made::{BANNER, DEBIAN_6_1, symbols, vmlinux};

/// Memory that holds an image, moved.
struct Loaded<'a>(&'a KernelImage, Slide);

impl Memory for Loaded<'_> {
    fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
        let bytes = address.linked(self.1).and_then(|at| self.0.bytes_at(at, buffer.len()));
        bytes.map(|bytes| buffer.copy_from_slice(bytes)).is_some()
    }
}

fn image(file: &[u8]) -> (KernelImage, Banner) {
    let image = KernelImage::from_bytes(file).expect("a kernel");
    let banner = Banner::of(&image, &Kallsyms::read(&image).expect("a table"));
    (image, banner)
}

#[test]
fn a_kernel_is_known_where_it_runs_and_another_in_its_place_is_not() {
    let file = vmlinux(&symbols(true), DEBIAN_6_1);
    let (own, banner) = image(&file);
    let slide = Slide::new(6 << 20);
    for slide in [Slide::ZERO, slide] {
        assert!(banner.is_in(&Loaded(&own, slide), slide));
    }
    assert!(!banner.is_in(&Loaded(&own, slide), Slide::ZERO), "it is elsewhere");
    // The same but for one letter of its first line.
    let mut other = file;
    let at = other.windows(BANNER.len()).position(|bytes| bytes == BANNER.as_bytes());
    other[at.expect("a banner") + BANNER.len() - 1] ^= 1;
    let (other, _) = image(&other);
    assert!(!banner.is_in(&Loaded(&other, slide), slide), "another kernel (kexec)");
    assert!(!banner.is_in(&Loaded(&own, slide), Slide::new(u64::MAX)), "there is no such place");
}
