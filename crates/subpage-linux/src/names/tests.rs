use super::*;

/// Two functions, with nothing between them and behind the second.
fn table() -> std::vec::Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(0x1234_5678_9abc_def0_u64.to_le_bytes());
    for number in [4_u32, 8, 3, 0x10, 0x14, 0x20, 0x18, 0x30, 4, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(0x1_fbc0_u64.to_le_bytes());
    for (address, start) in
        [(0x100_0000_u32, 0_u32), (0x100_0040, 5), (0x100_0050, 5), (0x100_0060, 8)]
    {
        bytes.extend(address.to_le_bytes());
        bytes.extend(start.to_le_bytes());
    }
    bytes.extend(b"firstend");
    bytes
}

fn at(names: &KernelNames<'_>, offset: u64) -> Option<(std::string::String, u64)> {
    let found = names.function_at(RuntimeAddress::new(START_KERNEL_MAP.wrapping_add(offset)));
    found.map(|(name, offset)| (name.into(), offset))
}

#[test]
fn functions_are_found_by_address() {
    let bytes = table();
    let names = KernelNames::read(&bytes).expect("names");
    assert!(names.are_of(0x1234_5678_9abc_def0) && !names.are_of(0));
    assert_eq!(at(&names, 0x100_0000), Some(("first".into(), 0)));
    assert_eq!(at(&names, 0x100_003f), Some(("first".into(), 0x3f)));
    assert_eq!(at(&names, 0x100_0040), None, "nothing is there");
    assert_eq!(at(&names, 0x100_005f), Some(("end".into(), 0xf)));
    for outside in [0, 0xff_ffff, 0x100_0060, 0x7fff_ffff] {
        assert_eq!(at(&names, outside), None, "{outside:#x}");
    }
    assert_eq!(names.function_at(RuntimeAddress::new(0x40_0000)), None);
    let expected = TaskPlaces {
        current: Current::PerProcessor(0x1_fbc0),
        pid: 0x10,
        tgid: 0x14,
        name: 0x20,
        leader: 0x18,
        uid: Some((0x30, 4)),
    };
    assert_eq!(names.tasks(), Some(&expected));
}

/// Every length and every entry that does not fit is refused, and nothing that is cut off is read.
#[test]
fn what_is_damaged_is_refused() {
    let whole = table();
    for length in 0..whole.len() {
        assert!(KernelNames::read(&whole[..length]).is_err(), "{length}");
    }
    let error = |at: usize, byte: u8| {
        let mut bytes = table();
        bytes[at] = byte;
        KernelNames::read(&bytes).map(|_| ())
    };
    assert_eq!(error(0, b'X'), Err(NamesError::Magic));
    // Counts of 4 thousand million.
    assert!(matches!(error(19, 0xff), Err(NamesError::Length { told, .. }) if told > 1 << 34));
    assert!(matches!(error(23, 0xff), Err(NamesError::Length { .. })));
    // Addresses that do not ascend; names that begin behind the text, or run backwards.
    assert_eq!(error(64 + 8, 0), Err(NamesError::Entry(1)));
    assert_eq!(error(64 + 8 + 4, 9), Err(NamesError::Entry(0)));
    assert_eq!(error(64 + 24 + 4, 4), Err(NamesError::Entry(2)));
    assert_eq!(error(whole.len() - 1, b'\n'), Err(NamesError::Entry(4)));
    let long = std::vec![0; MAX_BYTES + 1];
    assert_eq!(KernelNames::read(&long).err(), Some(NamesError::TooLong(MAX_BYTES + 1)));
}

#[test]
fn any_bytes_are_names_or_none() {
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let mut bytes = table();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 56) as u8;
        }
        if let Ok(names) = KernelNames::read(&bytes) {
            let _ = at(&names, state >> 32);
        }
    }
}

#[test]
fn an_image_is_known_by_length_beginning_and_end() {
    let image = std::vec![7; 1 << 18];
    let own = fingerprint(&image);
    assert_eq!(own, fingerprint(&image.clone()));
    for at in [0, image.len() - 1] {
        let mut other = image.clone();
        other[at] = 8;
        assert_ne!(own, fingerprint(&other));
    }
    assert_ne!(own, fingerprint(&image[1..]));
    assert_ne!(fingerprint(&[]), fingerprint(&[0]));
}
