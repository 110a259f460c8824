//! A distribution's kernel, which the lab has: `SUBPAGE_TEST_KERNEL` names the file.

use std::path::PathBuf;

use subpage_linux::{Kallsyms, KernelImage, Placement};

/// The kernel, if there is one. Tests of the lab set the variable; elsewhere there is none.
fn kernel() -> Option<KernelImage> {
    let path = PathBuf::from(std::env::var_os("SUBPAGE_TEST_KERNEL")?);
    Some(KernelImage::open(&path).expect("the kernel that SUBPAGE_TEST_KERNEL names"))
}

#[test]
fn a_distributions_kernel_tells_its_symbols() {
    let Some(image) = kernel() else { return };
    let kallsyms = Kallsyms::read(&image).expect("its symbols");
    assert!(kallsyms.count() > 50_000, "{}", kallsyms.count());
    let path = kallsyms.find("modprobe_path").expect("modprobe_path");
    assert_eq!((path.length, path.placement), (Some(256), Placement::Image));
    let text = image.bytes_at(path.address, 15).expect("its bytes");
    assert_eq!(text, b"/sbin/modprobe\0");
    let function = kallsyms.find("do_syscall_64").expect("do_syscall_64");
    let inside = function.address.checked_add(1).expect("an address");
    assert_eq!(kallsyms.at(inside), Some((function, 1)));
}
