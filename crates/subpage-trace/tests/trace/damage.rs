//! Traces that are cut, flipped, forged or made of noise: an error that says where, no panic.

use proptest::prelude::*;
use subpage_trace::{Header, Name, NameKind, Names, TraceError, TraceReader, Write};

use crate::{decode, encode, program};

fn small() -> (Header, Vec<u8>) {
    let header = Header {
        command: vec!["demo".into(), "-x".into()],
        names: Names::new([Name {
            name: "path".into(),
            start: 0x1000,
            length: 64,
            kind: NameKind::Object,
        }]),
        ..Header::default()
    };
    let bytes = encode(&header, &program(400));
    (header, bytes)
}

#[test]
fn every_cut_is_an_error() {
    let (_, bytes) = small();
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length]).expect_err("cut off");
        match error {
            TraceError::NotATrace => assert!(length < 8),
            TraceError::Truncated { offset, .. } => assert_eq!(offset, length as u64),
            other => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn every_flip_of_a_byte_is_an_error() {
    let (_, bytes) = small();
    for at in 0..bytes.len() {
        for flip in 1..=255 {
            let mut other = bytes.clone();
            other[at] ^= flip;
            assert!(decode(&other).is_err(), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn a_cut_says_how_much_is_readable() {
    let writes = program(40_000);
    let bytes = encode(&Header::default(), &writes);
    let mut reader = TraceReader::new(&bytes[..bytes.len() - 30]).expect("the header is whole");
    let mut block = Vec::new();
    let mut read: Vec<Write> = Vec::new();
    let error = loop {
        match reader.next_block(&mut block) {
            Ok(true) => read.extend(&block),
            Ok(false) => panic!("the end is missing"),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, TraceError::Truncated { block: 2, writes: 32_768, .. }), "{error}");
    assert!(read == writes[..32_768]);
    assert!(block.is_empty() && !reader.is_complete());
    assert!(!reader.next_block(&mut block).expect("nothing is read after an error"));
}

/// Where the frames of a trace with an empty header begin.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![22];
    while bytes[starts[starts.len() - 1]] == 1 {
        let start = starts[starts.len() - 1];
        let stored: [u8; 4] = bytes[start + 12..start + 16].try_into().expect("four bytes");
        starts.push(start + 20 + u32::from_le_bytes(stored) as usize);
    }
    starts
}

#[test]
fn damage_is_located_by_block_and_byte() {
    let bytes = encode(&Header::default(), &program(60_000));
    let starts = frames(&bytes);
    assert_eq!(starts.len(), 5);
    let mut other = bytes.clone();
    other[starts[2] + 100] ^= 1;
    let error = decode(&other).expect_err("damaged");
    let start = starts[2] as u64;
    assert!(
        matches!(error, TraceError::Checksum { block: 2, offset, writes: 32_768 } if offset == start),
        "{error}"
    );
}

#[test]
fn blocks_that_change_places_or_go_missing_are_noticed() {
    let bytes = encode(&Header::default(), &program(60_000));
    let s = frames(&bytes);
    let parts = |order: &[(usize, usize)]| -> Vec<u8> {
        order.iter().flat_map(|&(from, to)| bytes[from..to].iter().copied()).collect()
    };
    let end = bytes.len();
    for order in [
        vec![(0, s[0]), (s[1], s[2]), (s[0], s[1]), (s[2], end)],
        vec![(0, s[0]), (s[1], end)],
        vec![(0, s[1]), (s[0], end)],
        vec![(0, s[3]), (s[4], end)],
        vec![(0, end), (s[4], end)],
        vec![(0, end), (0, 1)],
    ] {
        assert!(decode(&parts(&order)).is_err(), "{order:?}");
    }
}

/// A trace of one block with that content, with right checksums.
fn forge(writes: u32, content: &[u8], total: u64) -> Vec<u8> {
    let mut bytes = encode(&Header::default(), &[]);
    bytes.truncate(22);
    let length = u32::try_from(content.len()).expect("small").to_le_bytes();
    let mut put = |number: u64, head: [u8; 16], payload: &[u8]| {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&number.to_le_bytes());
        crc.update(&head);
        crc.update(payload);
        bytes.extend(head);
        bytes.extend(crc.finalize().to_le_bytes());
        bytes.extend(payload);
    };
    let mut head = [0; 16];
    head[0] = 1;
    head[4..8].copy_from_slice(&writes.to_le_bytes());
    head[8..12].copy_from_slice(&length);
    head[12..16].copy_from_slice(&length);
    put(0, head, content);
    let mut head = [0; 16];
    head[0] = 2;
    head[8..16].copy_from_slice(&total.to_le_bytes());
    put(1, head, &[]);
    bytes
}

#[test]
fn forged_blocks_with_right_checksums() {
    // Three writes of the predefined site at address 0: a run of three.
    let read = decode(&forge(3, &[3], 3)).expect("the forger knows the format").1;
    assert!(read.len() == 3 && read.iter().all(|w| (w.pc, w.address, w.size) == (0, 0, 8)));
    let reason = |writes, content: &[u8], total| {
        let error = decode(&forge(writes, content, total)).expect_err("refused");
        match error {
            TraceError::Malformed { what, .. } => what,
            other => panic!("{other}"),
        }
    };
    assert_eq!(reason(3, &[3], 4), "the end counts other writes than the blocks hold");
    assert_eq!(reason(3, &[4], 3), "a run is longer than the block");
    assert_eq!(reason(3, &[3, 0], 3), "bytes follow the last run");
    assert_eq!(reason(3, &[2], 3), "the block is cut off");
    assert_eq!(reason(3, &[], 3), "a run is cut off");
    assert_eq!(reason(1, &[0xff; 11], 1), "a run is cut off");
    assert_eq!(reason(1, &[0, 2 | 4 << 2, 1, 0], 1), "a site is used before it is defined");
    assert_eq!(reason(1, &[0, 3 | 4 << 2, 2, 0, 0], 1), "a write has 1 to 64 bytes");
    assert_eq!(reason(1, &[0, 3 | 4 << 2, 2, 65, 0], 1), "a write has 1 to 64 bytes");
    assert_eq!(reason(1, &[0, 7 << 2, 0], 1), "unknown code");
    assert_eq!(reason(1, &[0, 255, 0, 1], 1), "unknown code");
    // Address 0 - 1, that is 2^48 - 1, for eight bytes.
    assert_eq!(reason(1, &[0, 5 << 2, 1, 0], 1), "a write passes the highest address");
    assert_eq!(reason(1, &[0, 5 << 2], 1), "an address is cut off");
}

/// A block names a process, and the header has to have it; in a trace of one that is number 0.
#[test]
fn a_block_of_a_process_that_is_not_there_is_refused() {
    let bytes = encode(&Header::default(), &program(10));
    let mut other = bytes.clone();
    let start = frames(&bytes)[0];
    other[start + 2] = 1;
    let error = decode(&other).expect_err("no such process");
    assert!(
        matches!(error, TraceError::Malformed { block: 0, what, .. } if what.contains("process")),
        "{error}"
    );
}

proptest! {
    #[test]
    fn noise_is_no_trace(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn noise_in_a_block_with_a_right_checksum(
        content in prop::collection::vec(
            prop_oneof![3 => 0_u8..32, 1 => any::<u8>()], 0..300,
        ),
        writes in 1_u32..200,
    ) {
        if let Ok((_, read)) = decode(&forge(writes, &content, u64::from(writes))) {
            prop_assert_eq!(read.len(), writes as usize);
            prop_assert!(read.iter().all(Write::is_valid));
        }
    }
}
