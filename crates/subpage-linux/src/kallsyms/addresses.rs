//! The symbols' addresses, in the forms that the kernel has had for them.

use super::KallsymsError;
use super::names::{Names, Texts};
use super::tables::{long, word};
use super::tokens::Tokens;
use crate::address::LinkAddress;
use crate::image::{KernelImage, Segment};

/// How a kernel stores addresses.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// As they are (without CONFIG_KALLSYMS_BASE_RELATIVE).
    Whole,
    /// Distance from the base.
    FromBase,
    /// Distance from the base, counted down from -1; or the address itself, if it is that of
    /// per-processor data (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, before 6.15).
    FromBaseOrAbsolute,
    /// Distance from the place of the number itself.
    FromItself,
}

const FORMS: [Form; 4] = [Form::Whole, Form::FromBase, Form::FromBaseOrAbsolute, Form::FromItself];

/// The address of each name.
pub(super) fn find(
    image: &KernelImage,
    segment: &Segment,
    names: &Names,
    tokens: &Tokens<'_>,
    texts: &Texts,
) -> Result<Vec<u64>, KallsymsError> {
    let checks = Checks::of(texts);
    let mut found = None;
    for form in FORMS {
        for is_before in [true, false] {
            let read = read(segment, names, tokens, form, is_before);
            let Some(read) = read.filter(|read| checks.pass(read, image)) else { continue };
            if found.as_ref().is_some_and(|found| *found != read) {
                return Err(KallsymsError::TwoReadings);
            }
            found = Some(read);
        }
    }
    found.ok_or(KallsymsError::Addresses)
}

/// The addresses, if they ascend: those before the count (until 6.3), or behind the tokens.
fn read(
    segment: &Segment,
    names: &Names,
    tokens: &Tokens<'_>,
    form: Form,
    is_before: bool,
) -> Option<Vec<u64>> {
    let bytes = &segment.bytes[..];
    let count = names.count;
    let length = match form {
        Form::Whole => 8 * count,
        _ => tokens.alignment.up(4 * count),
    };
    let has_base = matches!(form, Form::FromBase | Form::FromBaseOrAbsolute);
    let (start, base) = if is_before {
        let behind = names.count_at.checked_sub(if has_base { 8 } else { 0 })?;
        (behind.checked_sub(length)?, behind)
    } else {
        (tokens.end, tokens.end + length)
    };
    let base = if has_base { long(bytes, base)? } else { 0 };
    let origin = segment.address.as_u64();
    let mut last = 0;
    (0..count)
        .map(|number| {
            let at = start + number * if matches!(form, Form::Whole) { 8 } else { 4 };
            let distance = || word(bytes, at).map(u32::cast_signed);
            let address = match form {
                Form::Whole => long(bytes, at)?,
                Form::FromBase => base.checked_add(word(bytes, at)?.into())?,
                Form::FromBaseOrAbsolute => match distance()? {
                    absolute @ 0.. => u64::from(absolute.unsigned_abs()),
                    down => base.checked_add(u64::from(down.unsigned_abs() - 1))?,
                },
                Form::FromItself => {
                    origin.checked_add(at as u64)?.checked_add_signed(distance()?.into())?
                }
            };
            let ascends = address >= last;
            last = address;
            ascends.then_some(address)
        })
        .collect()
}

/// Symbols whose places the image knows.
struct Checks {
    text: Option<usize>,
    stext: Option<usize>,
    etext: Option<usize>,
    end: Option<usize>,
    banner: Option<usize>,
}

impl Checks {
    fn of(texts: &Texts) -> Self {
        let mut checks = Self { text: None, stext: None, etext: None, end: None, banner: None };
        let mut start = 0;
        for (number, end) in texts.ends.iter().enumerate() {
            let place = match &texts.bytes[start + 1..*end] {
                "_text" => Some(&mut checks.text),
                "_stext" => Some(&mut checks.stext),
                "_etext" => Some(&mut checks.etext),
                "_end" => Some(&mut checks.end),
                "linux_banner" => Some(&mut checks.banner),
                _ => None,
            };
            if let Some(place) = place {
                *place = Some(number);
            }
            start = *end;
        }
        checks
    }

    /// Whether the kernel's text lies in the image's code, in order, and its banner where the banner is.
    fn pass(&self, addresses: &[u64], image: &KernelImage) -> bool {
        let at = |number: Option<usize>| number.map(|number| LinkAddress::new(addresses[number]));
        let in_code = |address| image.segment_of(address).is_some_and(|segment| segment.is_code);
        let Some(start) = at(self.text).or(at(self.stext)) else { return false };
        let begins = |address: LinkAddress| {
            image.segments().iter().any(|segment| segment.is_code && segment.address == address)
        };
        let banner = image.banner().as_bytes();
        in_code(start)
            && at(self.text).is_none_or(begins)
            && at(self.stext).is_none_or(|stext| stext >= start && in_code(stext))
            && at(self.etext).is_none_or(|etext| etext > start)
            && at(self.end).is_none_or(|end| Some(end) >= at(self.etext))
            && at(self.banner).is_none_or(|at| image.bytes_at(at, banner.len()) == Some(banner))
    }
}
