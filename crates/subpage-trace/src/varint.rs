//! Variable-length integers (LEB128) and signed differences (zigzag).

/// Appends `value`, low seven bits first.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Takes one integer off the front of `input`; `None` if it is cut off or passes 64 bits.
#[inline]
pub(crate) fn take(input: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = input.split_first()?;
    if first < 0x80 {
        *input = rest;
        return Some(u64::from(first));
    }
    take_long(input)
}

fn take_long(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (i, &byte) in input.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if i == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * i);
        if byte < 0x80 {
            *input = &input[i + 1..];
            return Some(value);
        }
    }
    None
}

/// Maps a wrapped 64-bit difference to an integer that is small if the difference is near zero.
pub(crate) fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (difference.cast_signed() >> 63).cast_unsigned()
}

/// Inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_round_trips() {
        let mut edges = vec![0, 1, u64::MAX];
        edges.extend((1..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]));
        for value in edges {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            let mut input = bytes.as_slice();
            assert_eq!(take(&mut input), Some(value));
            assert!(input.is_empty());
            for cut in 0..bytes.len() {
                assert_eq!(take(&mut &bytes[..cut]), None);
            }
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!(zigzag(1_u64.wrapping_neg()), 1);
        assert_eq!(zigzag(1), 2);
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        assert_eq!(take(&mut [0xff; 20].as_slice()), None);
        let mut beyond = [0x80; 10];
        beyond[9] = 2;
        assert_eq!(take(&mut beyond.as_slice()), None);
    }
}
