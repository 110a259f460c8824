//! Arrays: their elements, and how long types are.

use super::super::notation::NotAPlace;
use super::entry::{Entry, Number, Reference};
use super::sections::wrong;
use super::types::MAX_CHAIN;
use super::units::{Reader, UnitId};
use super::wording::{counted, no_array, unusual};

/// What a path has come to.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A type that is not looked through yet.
    Type(Option<Reference>),
    /// An array from one of its dimensions on.
    Array {
        element: Option<Reference>,
        dimensions: Vec<Dimension>,
        stride: Option<u64>,
        /// Bytes of all of it, where it says so: LLVM pads vectors, as one of three to the room of four.
        bytes: Option<u64>,
    },
    /// A bit field: that many bytes hold it.
    Bits(u64),
}

/// One dimension of an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dimension {
    pub(super) first: i64,
    /// None if it has as many as there is room for.
    pub(super) count: Option<u64>,
}

impl Reader {
    /// What `kind` is, with arrays taken apart.
    pub(super) fn looked_through(
        &mut self,
        kind: Kind,
    ) -> Result<Result<Kind, Option<Entry>>, NotAPlace> {
        let Kind::Type(its_type) = kind else { return Ok(Ok(kind)) };
        let entry = self.behind(its_type)?;
        let Some(entry) = entry.as_ref().filter(|it| it.tag == gimli::DW_TAG_array_type) else {
            return Ok(Err(entry));
        };
        let lower_bound = self.lower_bound(entry.at.unit)?;
        let mut dimensions = Vec::new();
        for child in self.children(entry)? {
            if child.tag != gimli::DW_TAG_subrange_type {
                continue;
            }
            let uneven = [child.byte_stride, child.bit_stride];
            if uneven != [Number::Absent; 2] || dimensions.len() == MAX_CHAIN {
                return Err(unusual());
            }
            dimensions.push(dimension(&child, lower_bound).ok_or_else(unusual)?);
        }
        let bytes = match entry.byte_size {
            Number::Absent => None,
            bytes => Some(bytes.known().ok_or_else(unusual)?),
        };
        if dimensions.is_empty() || entry.bit_stride != Number::Absent {
            return Err(unusual());
        }
        let stride = match entry.byte_stride {
            Number::Absent => None,
            stride => Some(stride.known().ok_or_else(unusual)?),
        };
        Ok(Ok(Kind::Array { element: entry.its_type, dimensions, stride, bytes }))
    }

    /// The number of the first element of an array in `unit` that does not say it: that of its language.
    /// A part that several units have in common need not say its language, and has that of the variable.
    fn lower_bound(&mut self, unit: UnitId) -> Result<Option<i64>, NotAPlace> {
        let unit = self.unit(unit)?;
        Ok(match unit.lower_bound.or(self.lower_bound) {
            None if !unit.is_partial => Some(0),
            known => known,
        })
    }

    /// Where an element of what is at `path` begins, and what it is.
    pub(super) fn element(
        &mut self,
        kind: Kind,
        path: &str,
        index: u64,
    ) -> Result<(u64, Kind), NotAPlace> {
        let (element, mut dimensions, stride) = match self.looked_through(kind)? {
            Ok(Kind::Array { element, dimensions, stride, .. }) => (element, dimensions, stride),
            Ok(_) => return Err(no_array(path, None)),
            Err(entry) => return Err(no_array(path, entry.as_ref())),
        };
        let Dimension { first, count } = dimensions.remove(0);
        let place = i128::from(index) - i128::from(first);
        let place = u64::try_from(place).ok().filter(|it| count.is_none_or(|count| *it < count));
        let Some(place) = place else {
            let last = i128::from(first) + i128::from(count.unwrap_or(u64::MAX)) - 1;
            return Err(wrong(
                format!("`{path}` has {}, and none is [{index}]", counted(count)),
                format!("they are [{first}] to [{last}]"),
            ));
        };
        let one = self.elements(element, &dimensions, stride)?;
        let one = one.ok_or_else(|| {
            wrong(
                format!("nothing says how long an element of `{path}` is"),
                "write NAME+OFFSET+LENGTH",
            )
        })?;
        let offset = place.checked_mul(one).ok_or_else(|| {
            wrong(format!("`{path}[{index}]` lies beyond 2^64"), "correct the index")
        })?;
        let next = if dimensions.is_empty() {
            Kind::Type(element)
        } else {
            Kind::Array { element, dimensions, stride, bytes: None }
        };
        Ok((offset, next))
    }

    /// Bytes of so many elements; none if nothing says how many or how long they are.
    fn elements(
        &mut self,
        element: Option<Reference>,
        dimensions: &[Dimension],
        stride: Option<u64>,
    ) -> Result<Option<u64>, NotAPlace> {
        let mut bytes = match stride {
            Some(stride) => stride,
            None => match self.length(Kind::Type(element), None)? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
        };
        for dimension in dimensions {
            let Some(count) = dimension.count else { return Ok(None) };
            bytes = bytes.checked_mul(count).ok_or_else(unusual)?;
        }
        Ok(Some(bytes))
    }

    /// Bytes of `kind`; an array without a count has those of `rest`.
    pub(super) fn length(
        &mut self,
        kind: Kind,
        rest: Option<u64>,
    ) -> Result<Option<u64>, NotAPlace> {
        let mut kind = kind;
        // An array of arrays that are types of their own.
        let mut times = 1_u64;
        for _ in 0..MAX_CHAIN {
            let (element, dimensions, stride) = match self.looked_through(kind)? {
                Ok(Kind::Bits(bytes)) => return Ok(Some(bytes)),
                Ok(Kind::Array { bytes: Some(bytes), .. }) => {
                    return times.checked_mul(bytes).ok_or_else(unusual).map(Some);
                }
                Ok(Kind::Array { element, dimensions, stride, .. }) => {
                    (element, dimensions, stride)
                }
                Ok(Kind::Type(_)) | Err(None) => return Ok(None),
                Err(Some(entry)) => {
                    let bytes = self.own_length(&entry)?;
                    let bytes = bytes.map(|bytes| bytes.checked_mul(times).ok_or_else(unusual));
                    return bytes.transpose();
                }
            };
            for Dimension { count, .. } in &dimensions {
                let Some(count) = count else { return Ok(rest) };
                times = times.checked_mul(*count).ok_or_else(unusual)?;
            }
            if let Some(stride) = stride {
                return times.checked_mul(stride).ok_or_else(unusual).map(Some);
            }
            kind = Kind::Type(element);
        }
        Err(self.sections.damaged("an array is its own element"))
    }

    /// Bytes that a type says it has.
    fn own_length(&mut self, entry: &Entry) -> Result<Option<u64>, NotAPlace> {
        let is_pointer = matches!(
            entry.tag,
            gimli::DW_TAG_pointer_type
                | gimli::DW_TAG_reference_type
                | gimli::DW_TAG_rvalue_reference_type
        );
        match entry.byte_size.known() {
            None if is_pointer => {
                let unit = self.unit(entry.at.unit)?;
                Ok(Some(unit.header().address_size().into()))
            }
            // A type with another one for its values.
            None if entry.tag == gimli::DW_TAG_enumeration_type
                || entry.tag == gimli::DW_TAG_subrange_type =>
            {
                let inner = self.behind(entry.its_type)?;
                Ok(inner.and_then(|inner| inner.byte_size.known()))
            }
            known => Ok(known),
        }
    }
}

/// The elements of a dimension; none if it cannot be.
fn dimension(entry: &Entry, otherwise: Option<i64>) -> Option<Dimension> {
    let first = match entry.lower_bound {
        Number::Absent => otherwise?,
        Number::Known(first) => i64::try_from(first).ok()?,
        Number::Computed => return None,
    };
    let count = match (entry.count, entry.upper_bound) {
        (Number::Known(count), _) => Some(u64::try_from(count).ok()?),
        (Number::Absent, Number::Known(last)) => {
            Some(u64::try_from(last.checked_sub(first.into())?.checked_add(1)?).ok()?)
        }
        (Number::Absent, Number::Absent) => None,
        _ => return None,
    };
    // `[0]` at the end of a structure is an old way to write `[]`.
    Some(Dimension { first, count: count.filter(|count| *count > 0) })
}
