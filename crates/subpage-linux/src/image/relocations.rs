//! Which words of a kernel hold its own addresses, so that it can be moved (CONFIG_RANDOMIZE_BASE).
//!
//! The kernel's build appends lists to the ELF file that it packs into a bzImage: link addresses as
//! signed 32-bit numbers, each list behind a zero. First the words of 64 bits, then, before Linux 6.15,
//! words of 32 bits from which the distance is taken (offsets from per-processor data to the kernel),
//! then words of 32 bits. (arch/x86/boot/compressed/misc.c and arch/x86/tools/relocs.c say so.)

use super::{ImageError, Segment};
use crate::address::{LinkAddress, START_KERNEL_MAP, Slide};

/// The words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relocations {
    wide: Vec<LinkAddress>,
    inverse: Vec<LinkAddress>,
    narrow: Vec<LinkAddress>,
}

/// Longest lists in bytes: 64 MiB. Those of a distribution's kernel have about 1 MiB.
const MAX_BYTES: usize = 64 << 20;

impl Relocations {
    /// The lists in what follows an ELF file; `None` if they are not such lists, or empty.
    pub(super) fn parse(appended: &[u8]) -> Option<Self> {
        if appended.len() > MAX_BYTES || !appended.len().is_multiple_of(4) {
            return None;
        }
        let words: Vec<i32> = appended
            .chunks_exact(4)
            .map(|word| i32::from_le_bytes(word.try_into().expect("four bytes")))
            .collect();
        let (0, lists) = words.split_first()? else { return None };
        // Sign extension is how the lists are meant.
        let address = |word: &i32| LinkAddress::new(i64::from(*word).cast_unsigned());
        let lists: Vec<Vec<LinkAddress>> = lists
            .split(|word| *word == 0)
            .take(4)
            .map(|list| list.iter().map(address).collect())
            .collect();
        let [wide, inverse, narrow] = match <[_; 3]>::try_from(lists) {
            Ok(lists) => lists,
            Err(lists) => match <[_; 2]>::try_from(lists) {
                Ok([wide, narrow]) => [wide, Vec::new(), narrow],
                Err(_) => return None,
            },
        };
        (!wide.is_empty() || !narrow.is_empty()).then_some(Self { wide, inverse, narrow })
    }

    /// Has the segments' words hold addresses that are higher by `slide`; all words or none.
    pub(super) fn apply(&self, segments: &mut [Segment], slide: Slide) -> Result<(), ImageError> {
        let lists = [(&self.wide, 8), (&self.inverse, 4), (&self.narrow, 4)];
        for (list, width) in lists {
            for address in list {
                place(segments, *address, width)?;
            }
        }
        let distance = slide.bytes();
        let narrow = u32::try_from(distance).map_err(|_| ImageError::Slide { bytes: distance })?;
        for address in &self.wide {
            change(segments, *address, |word| {
                u64::from_le_bytes(word).wrapping_add(distance).to_le_bytes()
            })?;
        }
        for address in &self.inverse {
            change(segments, *address, |word| {
                u32::from_le_bytes(word).wrapping_sub(narrow).to_le_bytes()
            })?;
        }
        for address in &self.narrow {
            change(segments, *address, |word| {
                u32::from_le_bytes(word).wrapping_add(narrow).to_le_bytes()
            })?;
        }
        Ok(())
    }
}

/// The segment that holds a word, and where. Words of per-processor data are named by where that lies in
/// the image, not by its own addresses from 0.
fn place(
    segments: &[Segment],
    address: LinkAddress,
    width: usize,
) -> Result<(usize, usize), ImageError> {
    let physical = address.as_u64().checked_sub(START_KERNEL_MAP);
    let found = segments.iter().enumerate().find_map(|(index, segment)| {
        let offset = usize::try_from(physical?.checked_sub(segment.physical)?).ok()?;
        (offset.checked_add(width)? <= segment.bytes.len()).then_some((index, offset))
    });
    found.ok_or(ImageError::Relocation { address })
}

fn change<const N: usize>(
    segments: &mut [Segment],
    address: LinkAddress,
    to: impl FnOnce([u8; N]) -> [u8; N],
) -> Result<(), ImageError> {
    let (index, offset) = place(segments, address, N)?;
    let word = &mut segments[index].bytes[offset..offset + N];
    let old = <[u8; N]>::try_from(&*word).expect("so many bytes");
    word.copy_from_slice(&to(old));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = START_KERNEL_MAP + 0x100_0000;

    fn segment(bytes: &[u8]) -> Segment {
        Segment {
            address: LinkAddress::new(BASE),
            physical: 0x100_0000,
            length: bytes.len() as u64,
            bytes: bytes.to_vec(),
            is_code: false,
            is_writable: true,
        }
    }

    fn appended(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()[..4].to_vec()).collect()
    }

    #[test]
    fn endless_lists_are_none() {
        let mut lists = vec![0xff; MAX_BYTES];
        lists[..4].fill(0);
        assert!(Relocations::parse(&lists).is_none(), "one list");
        let end = lists.len() - 4;
        lists[end..].fill(0);
        assert!(Relocations::parse(&lists).is_some(), "two");
        lists.extend([0xff; 4]);
        assert!(Relocations::parse(&lists).is_none(), "too long");
    }

    #[test]
    fn words_of_each_kind_are_moved_in_their_way() {
        for lists in [
            vec![0, BASE, 0, BASE + 8, 0, BASE + 12, BASE + 16],
            vec![0, BASE, 0, BASE + 12, BASE + 16],
        ] {
            let inverse = lists.len() == 7;
            let relocations = Relocations::parse(&appended(&lists)).expect("lists");
            let mut bytes = (BASE + 4).to_le_bytes().to_vec();
            for word in [0x1000_u32, 0x8100_0000, 0xffff_fff0, 7] {
                bytes.extend(word.to_le_bytes());
            }
            let mut segments = [segment(&bytes)];
            relocations.apply(&mut segments, Slide::new(0x20_0000)).expect("all are there");
            let moved = &segments[0].bytes;
            let word = |at: usize| u32::from_le_bytes(moved[at..at + 4].try_into().expect("four"));
            assert_eq!(moved[..8], (BASE + 4 + 0x20_0000).to_le_bytes());
            let expected = if inverse { 0x1000_u32.wrapping_sub(0x20_0000) } else { 0x1000 };
            assert_eq!((word(8), word(12)), (expected, 0x8120_0000));
            assert_eq!((word(16), word(20)), (0x001f_fff0, 7));
        }
    }

    #[test]
    fn a_word_that_the_image_does_not_have_moves_nothing() {
        for wrong in [BASE - 1, BASE + 1, BASE + 8, 0x1000] {
            let relocations =
                Relocations::parse(&appended(&[0, BASE, wrong, 0, 0])).expect("lists");
            let mut segments = [segment(&[0; 8])];
            assert!(relocations.apply(&mut segments, Slide::new(1 << 21)).is_err(), "{wrong:#x}");
            assert_eq!(segments[0].bytes, [0; 8]);
        }
    }

    #[test]
    fn other_bytes_are_no_lists() {
        for words in [&[][..], &[0], &[0, 0], &[0, 0, 0], &[0, 0, 0, 0, 5], &[1, 0, 2], &[0, 1]] {
            assert_eq!(Relocations::parse(&appended(words)), None, "{words:?}");
        }
        assert_eq!(Relocations::parse(&[0; 13]), None);
    }

    proptest! {
        #[test]
        fn anything_may_be_appended(bytes in prop::collection::vec(0..3_u8, 0..64), slide: u64) {
            if let Some(relocations) = Relocations::parse(&bytes) {
                let _ = relocations.apply(&mut [segment(&[0; 16])], Slide::new(slide));
            }
        }
    }
}
