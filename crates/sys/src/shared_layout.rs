//! Types that may lie in memory which several processes write, and a digest by which
//! two programs find out whether they mean the same bytes by them.
//!
//! Nothing here acts: `shared_mapping` maps memory as such types.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

/// A type that may lie in memory which other processes write.
///
/// # Safety
/// Any bytes are a valid value, zeros among them; every field is an atomic or a
/// [`SemaphorePlace`](super::SemaphorePlace) (or consists of such); it needs no drop.
/// Structs get it by `shared_layout!`, which checks the fields.
pub unsafe trait SharedLayout: Send + Sync + 'static {
    /// Stands for the shape of the type: it is another one when a field gets another
    /// size, place, kind or name.
    const DIGEST: u64;
}

// SAFETY: any bytes are a valid atomic, and atomics are made for concurrent writers.
unsafe impl SharedLayout for AtomicU32 {
    const DIGEST: u64 = LayoutDigest::of::<Self>("u32").finish();
}

// SAFETY: as for `AtomicU32`.
unsafe impl SharedLayout for AtomicU64 {
    const DIGEST: u64 = LayoutDigest::of::<Self>("u64").finish();
}

// SAFETY: as for `AtomicU32`.
unsafe impl SharedLayout for AtomicI64 {
    const DIGEST: u64 = LayoutDigest::of::<Self>("i64").finish();
}

// SAFETY: an array is its elements, one after the other.
unsafe impl<T: SharedLayout, const N: usize> SharedLayout for [T; N] {
    const DIGEST: u64 = LayoutDigest::of::<Self>("array").field("element", N, T::DIGEST).finish();
}

/// A digest in the making: FNV-1a (64 bits) over everything that decides where the
/// bytes of a layout are and what they are called. A constant, if all its parts are.
///
/// It finds accidents, such as a field that moved, and no forger.
#[derive(Clone, Copy, Debug)]
pub struct LayoutDigest(u64);

impl LayoutDigest {
    /// Begins with the kind of a type, its size and its alignment.
    #[must_use]
    pub const fn of<T>(kind: &str) -> Self {
        Self(0xCBF2_9CE4_8422_2325).text(kind).number(size_of::<T>()).number(align_of::<T>())
    }

    /// Adds a part: its name, where it begins (in bytes; of an array, how many there
    /// are), and its own digest.
    #[must_use]
    pub const fn field(self, name: &str, offset: usize, digest: u64) -> Self {
        self.text(name).number(offset).bytes(&digest.to_le_bytes())
    }

    /// The digest.
    #[must_use]
    pub const fn finish(self) -> u64 {
        self.0
    }

    /// With a byte behind it that no text has: `ab` and `c` are not `a` and `bc`.
    const fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes()).bytes(&[0xFF])
    }

    const fn number(self, number: usize) -> Self {
        self.bytes(&(number as u64).to_le_bytes())
    }

    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            self.0 = (self.0 ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01B3);
            at += 1;
        }
        self
    }
}

/// Defines a `#[repr(C)]` struct that may lie in a [`SharedMapping`](crate::SharedMapping).
/// Each field's type must be a [`SharedLayout`] itself, or the crate does not compile.
#[macro_export]
macro_rules! shared_layout {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }

        const _: () = {
            const fn is_shared_layout<T: $crate::SharedLayout>() {}
            $(is_shared_layout::<$type>();)*
        };

        #[allow(unsafe_code, reason = "each field's type is checked two lines above")]
        // SAFETY: every field is a `SharedLayout`, so any bytes are valid for the
        // whole and no field is plain memory; padding is never read.
        unsafe impl $crate::SharedLayout for $name {
            const DIGEST: u64 = $crate::LayoutDigest::of::<Self>("struct")
                $(.field(
                    stringify!($field),
                    ::std::mem::offset_of!($name, $field),
                    <$type as $crate::SharedLayout>::DIGEST,
                ))*
                .finish();
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Each is the first one with one difference.
    mod shapes {
        use super::{AtomicU32, AtomicU64};

        macro_rules! shape {
            ($name:ident: $($(#[$meta:meta])* $field:ident: $type:ty),+) => {
                shared_layout! {
                    #[derive(Debug)]
                    pub(super) struct $name { $($(#[$meta])* $field: $type,)+ }
                }
            };
        }

        shape!(First: a: AtomicU64, b: AtomicU64, c: [AtomicU32; 4]);
        shape!(Renamed: a: AtomicU64, d: AtomicU64, c: [AtomicU32; 4]);
        shape!(Exchanged: b: AtomicU64, a: AtomicU64, c: [AtomicU32; 4]);
        shape!(Longer: a: AtomicU64, b: AtomicU64, c: [AtomicU32; 5]);
        shape!(OneMore: a: AtomicU64, b: AtomicU64, c: [AtomicU32; 4], d: AtomicU64);
        shape!(OneLess: a: AtomicU64, b: AtomicU64);
        shape!(OtherType: a: AtomicU64, b: AtomicU64, c: [AtomicU64; 2]);
        shape!(Nested: a: AtomicU64, b: [AtomicU64; 1], c: [AtomicU32; 4]);
    }

    shared_layout! {
        #[derive(Debug)]
        #[repr(align(128))]
        struct Aligned {
            a: AtomicU64,
            b: AtomicU64,
            c: [AtomicU32; 4],
        }
    }

    #[test]
    fn every_change_of_a_layout_changes_its_digest() {
        let digests = [
            shapes::First::DIGEST,
            shapes::Renamed::DIGEST,
            shapes::Exchanged::DIGEST,
            shapes::Longer::DIGEST,
            shapes::OneMore::DIGEST,
            shapes::OneLess::DIGEST,
            shapes::OtherType::DIGEST,
            shapes::Nested::DIGEST,
            Aligned::DIGEST,
            <[shapes::First; 2]>::DIGEST,
            <[shapes::First; 3]>::DIGEST,
        ];
        assert_eq!(digests.into_iter().collect::<HashSet<_>>().len(), digests.len());
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        // From the authors' own list of test vectors: "foobar".
        let digest = LayoutDigest(0xCBF2_9CE4_8422_2325).bytes(b"foobar");
        assert_eq!(digest.finish(), 0x8594_4171_F739_67E8);
    }
}
