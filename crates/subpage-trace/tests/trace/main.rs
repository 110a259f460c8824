//! Traces as files: round trips, and every kind of damage.

mod damage;
mod machine;
mod own_tool;
mod processes;
mod recording;
mod round_trip;

use subpage_trace::{Header, TraceError, TraceReader, TraceWriter, Write};

fn encode(header: &Header, writes: &[Write]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), header).expect("memory does not fail");
    for &write in writes {
        writer.write(write).expect("the write is valid");
    }
    writer.finish().expect("memory does not fail")
}

fn decode(bytes: &[u8]) -> Result<(Header, Vec<Write>), TraceError> {
    let mut reader = TraceReader::new(bytes)?;
    let mut all = Vec::new();
    let mut block = Vec::new();
    while reader.next_block(&mut block)? {
        all.extend(&block);
    }
    assert!(reader.is_complete());
    Ok((reader.header().clone(), all))
}

/// Writes as a program makes them: loops over a few sites, strides, a stack, some noise.
fn program(length: u64) -> Vec<Write> {
    let mut noise = 1_u64;
    (0..length)
        .map(|i| {
            noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (site, address, size) = match i % 7 {
                0 => (0, 0x1f_ff00_0000 - 8 * (i / 7 % 9), 8),
                1 => (1, 0x10_0000 + 4 * i, 4),
                2 => (2, 0x60_0010, 1),
                3 if noise >> 60 == 0 => (noise >> 40, noise >> 17, 8),
                3 => (3, 0x60_0020 + (noise >> 58), 2),
                _ => (4 + i % 7, 0x70_0000 + 64 * (i / 7), 16),
            };
            let address = address.min((1 << 47) - 1);
            Write { pc: 0x40_0000 + 3 * site, address, size }
        })
        .collect()
}
