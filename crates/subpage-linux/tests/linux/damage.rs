//! Damaged images: no panic, no wrong symbol.

use proptest::prelude::*;
use subpage_linux::{Kallsyms, KernelImage};

use crate::made::{Addresses, DEBIAN_6_1, Form, Wanted, bzimage, symbols, vmlinux};

/// Reads what can be read, and every symbol of it.
fn read(bytes: &[u8]) -> Option<usize> {
    let image = KernelImage::from_bytes(bytes).ok()?;
    let kallsyms = Kallsyms::read(&image).ok()?;
    for symbol in kallsyms.iter() {
        assert!(!symbol.name.is_empty());
        assert!(kallsyms.named(symbol.name).any(|found| found == symbol));
        let _ = kallsyms.at(symbol.address);
    }
    Some(kallsyms.count())
}

fn newest() -> (Vec<Wanted>, Form) {
    let form = Form {
        addresses: Addresses::FromItself,
        is_before: false,
        order: true,
        marker_bytes: 4,
        alignment: 4,
    };
    (symbols(false), form)
}

#[test]
fn every_cut_is_refused_or_whole() {
    let kernel = vmlinux(&symbols(true), DEBIAN_6_1);
    let whole = read(&kernel);
    for cut in (0..0x1200).chain((0x1200..kernel.len()).step_by(0xfff1)) {
        let found = read(&kernel[..cut]);
        assert!(found.is_none() || found == whole, "cut at {cut:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_bytes_never_panic(
        newer in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (symbols, form) = if newer { newest() } else { (symbols(true), DEBIAN_6_1) };
        let mut kernel = vmlinux(&symbols, form);
        // Most of an image says nothing: headers, and the tables, which lie behind the first MiB.
        let places: Vec<_> = (0..0x200).chain(0x10_0000..0x10_a000).collect();
        for (index, value) in changes {
            kernel[places[index.index(places.len())]] = value;
        }
        read(&kernel);
    }

    #[test]
    fn changed_payloads_never_panic(
        method in 0_usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let magic: [&[u8]; 5] = [
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
            b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x02\0\x21\x01",
            b"\x02\x21\x4c\x18\x10\0\0\0",
            b"\x28\xb5\x2f\xfd\xa4",
        ];
        let mut payload = magic[method].to_vec();
        payload.extend(tail);
        for (index, value) in changes {
            let at = index.index(payload.len());
            payload[at] = value;
        }
        prop_assert!(read(&bzimage(&payload)).is_none());
    }
}
