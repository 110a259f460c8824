//! Values at the ends of their ranges, and the words for them.

use subpage::access::{AccessMap, SubPage};
use subpage::address::{AddressError, Gfn, Gpa, Hpa, PhysicalWidth};
use subpage::errno::Errno;
use subpage::frames::TableFrame;
use subpage::level::PageSize;
use subpage::rules::{Moment, RuleName};

/// Calls `$try_new` and `$checked_add` around the highest value.
macro_rules! highest {
    ($kind:ident, $bits:expr, $error:expr) => {
        let highest = (1_u64 << $bits) - 1;
        assert_eq!($kind::MAX.as_u64(), highest);
        for value in [0, 1, highest - 1, highest] {
            assert_eq!($kind::try_new(value).map($kind::as_u64), Ok(value));
        }
        for value in [highest + 1, highest + 2, u64::MAX] {
            assert_eq!($kind::try_new(value), Err($error(value)));
        }
        let below = $kind::new(highest - 1);
        assert_eq!(below.checked_add(1), Some($kind::MAX));
        assert_eq!(below.checked_add(2), None);
        assert_eq!(below.checked_add(u64::MAX), None);
    };
}

#[test]
fn addresses_fit_up_to_their_highest() {
    highest!(Gpa, 48, |gpa| AddressError::GpaTooWide { gpa, bits: 48 });
    highest!(Gfn, 36, |gfn| AddressError::GfnTooWide { gfn, bits: 48 });
    highest!(Hpa, 52, |hpa| AddressError::HpaTooWide { hpa });
    assert!(Hpa::new(0x3000).is_aligned(0x1000));
    assert!(!Hpa::new(0x3000).is_aligned(0x2000));
}

#[test]
fn a_width_bounds_frames_of_the_guest_and_addresses_of_the_host() {
    for bits in [0, 31, 53, u32::MAX] {
        assert_eq!(PhysicalWidth::try_new(bits), Err(AddressError::Width { bits }));
    }
    for (bits, frames, told) in
        [(32, 20, 32), (36, 24, 36), (47, 35, 47), (48, 36, 48), (52, 36, 48)]
    {
        let width = PhysicalWidth::try_new(bits).expect("a width");
        let last = Gfn::new((1 << frames) - 1);
        assert_eq!((width.bits(), width.last_gfn()), (bits, last));
        assert_eq!(width.check(last), Ok(()));
        if let Some(gfn) = last.checked_add(1) {
            let beyond = AddressError::GfnTooWide { gfn: gfn.as_u64(), bits: told };
            assert_eq!(width.check(gfn), Err(beyond));
        }
        assert!(width.holds(Hpa::new((1 << bits) - 1)));
        assert!(bits == 52 || !width.holds(Hpa::new(1 << bits)));
    }
}

#[test]
fn a_table_frame_is_a_whole_page() {
    assert_eq!(TableFrame::try_new(Hpa::new(0x5000)).map(|f| f.hpa().as_u64()), Ok(0x5000));
    let unaligned = AddressError::Unaligned { address: 0x5008, alignment: 4096 };
    assert_eq!(TableFrame::try_new(Hpa::new(0x5008)), Err(unaligned));
    let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    assert_eq!(sizes.map(PageSize::bytes), [4 << 10, 2 << 20, 1 << 30]);
}

#[test]
fn a_map_has_the_sub_pages_of_its_bits() {
    let map = AccessMap::from_bits(0x8000_0011);
    assert_eq!(map.iter().map(SubPage::index).collect::<Vec<_>>(), [0, 4, 31]);
    assert!(map.covers(AccessMap::from_bits(0x11)) && map.covers(map));
    assert!(!map.covers(AccessMap::from_bits(0x13)));
}

/// Other programs and people read these.
#[test]
fn words_and_names_stay_as_they_are() {
    let errors = [
        (Errno::NotPermitted, "EPERM", -1),
        (Errno::NoEntry, "ENOENT", -2),
        (Errno::NoMemory, "ENOMEM", -12),
        (Errno::Fault, "EFAULT", -14),
        (Errno::Busy, "EBUSY", -16),
        (Errno::Exists, "EEXIST", -17),
        (Errno::NoDevice, "ENODEV", -19),
        (Errno::Invalid, "EINVAL", -22),
        (Errno::NoSpace, "ENOSPC", -28),
        (Errno::NoCall, "ENOSYS", -38),
    ];
    for (errno, name, number) in errors {
        assert_eq!((errno.name(), errno.to_result()), (name, number));
    }
    let words = ["start", "entry", "init", "write", "command"];
    assert_eq!(Moment::ALL.map(Moment::word), words);
    assert_eq!(words.map(Moment::from_word), Moment::ALL.map(Some));
    assert_eq!(Moment::from_word("starts"), None);
    assert_eq!(RuleName::new("vdso").expect("a name").as_str(), "vdso");
}
