//! The interface of the KVM series: layout, errno, and a requester that cheats.

use subpage::errno::Errno;
use subpage::uapi::{Fault, HEADER_BYTES, RequestMemory, get_access, set_access};

use crate::guest::{BASE, bare, bytes, done, get, guest, picture, rule};
use subpage::rules::Action;

/// A requester's memory that changes after each reading, as a racing thread would do.
struct Racing {
    bytes: Vec<u8>,
    reads: Vec<(usize, usize)>,
    after_read: Option<Vec<u8>>,
}

impl Racing {
    fn new(gfn_base: u64, npages: u32, flags: u32, maps: &[u32]) -> Self {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&gfn_base.to_le_bytes());
        bytes.extend_from_slice(&npages.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        for map in maps {
            bytes.extend_from_slice(&map.to_le_bytes());
        }
        Self { bytes, reads: Vec::new(), after_read: None }
    }

    fn maps(&self) -> Vec<u32> {
        self.bytes[HEADER_BYTES..]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .collect()
    }
}

impl RequestMemory for Racing {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let source = self.bytes.get(offset..offset + buffer.len()).ok_or(Fault)?;
        buffer.copy_from_slice(source);
        self.reads.push((offset, buffer.len()));
        if let Some(bytes) = self.after_read.take() {
            self.bytes = bytes;
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        let target = self.bytes.get_mut(offset..offset + bytes.len()).ok_or(Fault)?;
        target.copy_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn set_and_get_return_the_number_of_pages() {
    let (mut domain, _) = guest(600);
    let maps: Vec<u32> = (0..512).collect();
    let (pages, token) =
        set_access(&mut domain, &mut Racing::new(BASE + 3, 512, 0, &maps)).expect("a good request");
    done(&mut domain, token);
    assert_eq!(pages, 512);
    let mut request = Racing::new(BASE + 3, 512, 0, &[9; 512]);
    assert_eq!(get_access(&domain, &mut request), Ok(512));
    assert_eq!(request.maps(), maps);
    assert_eq!(get_access(&domain, &mut Racing::new(0, 0, 0, &[])), Ok(0), "no page: nothing done");
}

#[test]
fn every_error_has_its_number_and_changes_nothing() {
    let (mut domain, _) = guest(16);
    let before = picture(&domain);
    let cases = [
        (Racing::new(BASE, 1, 1, &[0]), Errno::Invalid, -22),
        (Racing::new(BASE, 513, 0, &[0; 513]), Errno::Invalid, -22),
        (Racing::new(u64::MAX, 2, 0, &[0; 2]), Errno::Invalid, -22),
        (Racing::new((1 << 36) - 1, 2, 0, &[0; 2]), Errno::Invalid, -22),
        (Racing::new(BASE + 15, 2, 0, &[0; 2]), Errno::Fault, -14),
        (Racing::new(BASE, 2, 0, &[0]), Errno::Fault, -14),
        (Racing { bytes: vec![0; 15], reads: vec![], after_read: None }, Errno::Fault, -14),
    ];
    for (mut request, errno, number) in cases {
        assert_eq!(set_access(&mut domain, &mut request).map(|(n, _)| n), Err(errno));
        request.reads.clear();
        assert_eq!(get_access(&domain, &mut request), Err(errno));
        assert_eq!(errno.to_result(), number);
    }
    assert_eq!(picture(&domain), before);
    let (mut off, _) = bare();
    let mut request = Racing { bytes: vec![], reads: vec![], after_read: None };
    assert_eq!(set_access(&mut off, &mut request).map(|(n, _)| n), Err(Errno::NoDevice));
    assert_eq!(get_access(&off, &mut request), Err(Errno::NoDevice), "before the pointer is used");
}

#[test]
fn a_locked_rule_is_eperm() {
    let (mut domain, _) = guest(16);
    let mut locked = rule(bytes(BASE * 4096, 1), Action::Deny);
    locked.locked = true;
    let (_, token) = domain.add_rule(locked).expect("a rule");
    done(&mut domain, token);
    let result = set_access(&mut domain, &mut Racing::new(BASE, 1, 0, &[u32::MAX]));
    assert_eq!(result.map(|(n, _)| n), Err(Errno::NotPermitted));
    assert_eq!(Errno::NotPermitted.to_result(), -1);
}

/// D3: the second reading of the header was trusted, so a racing thread could enlarge the request.
#[test]
fn d3_each_byte_is_read_once() {
    let (mut domain, _) = guest(16);
    let mut request = Racing::new(BASE, 1, 0, &[7; 600]);
    request.after_read = Some(Racing::new(BASE, 500, 0xFFFF, &[5; 600]).bytes);
    let (pages, token) = set_access(&mut domain, &mut request).expect("the first reading counts");
    done(&mut domain, token);
    assert_eq!(pages, 1);
    assert_eq!(request.reads, [(0, 16), (16, 4)]);
    assert_eq!((get(&domain, BASE), get(&domain, BASE + 1)), (5, u32::MAX));
}

/// A request is read in pieces; the last one ends where the maps end.
#[test]
fn no_byte_behind_the_last_map_is_read() {
    let (mut domain, _) = guest(64);
    let maps: Vec<u32> = (0..20).collect();
    let mut request = Racing::new(BASE, 20, 0, &maps);
    let (pages, token) = set_access(&mut domain, &mut request).expect("a good request");
    done(&mut domain, token);
    assert_eq!(pages, 20);
    let last = request.reads.last().expect("several");
    assert_eq!(last.0 + last.1, HEADER_BYTES + 20 * 4);
    assert_eq!((get(&domain, BASE + 19), get(&domain, BASE + 20)), (19, u32::MAX));
}
