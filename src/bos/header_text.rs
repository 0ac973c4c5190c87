//! The values of headers that are stored with objects, as text without loss: what came over the wire goes back over it
//! byte for byte, whatever program wrote it and in whatever encoding.
//!
//! Values that are UTF-8 are their text. A byte that is not (GBK and Latin-1 file names in `Content-Disposition` are
//! common) becomes a character of a private range, so that the text can be kept in journals, compared and cut like any
//! other. A character of that range that really came over the wire is kept byte by byte in the same way, which makes the
//! two directions the exact inverse of one another.

use std::borrow::Cow;

/// Stands for the byte 0x80; the characters behind it stand for the bytes up to 0xFF.
const FIRST: u32 = 0x10_FF80;

/// The text of a header's value.
pub fn from_wire(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match byte_of(c) {
                None => text.push(c),
                Some(_) => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| text.push(char_of(byte))),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push(char_of(*byte)));
    }
    text
}

/// The bytes of a value that [`from_wire`] gave, or of any other text.
pub fn to_wire(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(|c| byte_of(c).is_some()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// How many bytes a value takes on the wire.
pub fn wire_len(text: &str) -> usize {
    to_wire(text).len()
}

/// A value without the blanks at its ends that are no part of it on the wire. Others, such as the ideographic space, are.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The character that stands for `byte`; those of ASCII are themselves.
fn char_of(byte: u8) -> char {
    if byte.is_ascii() {
        char::from(byte)
    } else {
        char::from_u32(FIRST + u32::from(byte - 0x80)).unwrap_or('\u{fffd}')
    }
}

fn byte_of(c: char) -> Option<u8> {
    u32::from(c).checked_sub(FIRST).and_then(|index| u8::try_from(index + 0x80).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_byte_for_byte() {
        let gbk = b"attachment; filename=\"\xc4\xbf\xc2\xbc.txt\"";
        let private = "a\u{10ff80}b\u{10ffff}".as_bytes();
        for value in [
            &b""[..],
            b"plain 100%",
            "attachment; filename=\"目录.txt\"".as_bytes(),
            gbk,
            b"caf\xe9",
            b"\xe7\x9b",
            private,
            b"\xff\x80\xf4\x8f\xbe\x80",
        ] {
            let text = from_wire(value);
            assert_eq!(to_wire(&text), value, "{text:?}");
            assert_eq!(wire_len(&text), value.len());
            // Kept in journals as JSON.
            let kept: String = serde_json::from_str(&serde_json::to_string(&text).unwrap()).unwrap();
            assert_eq!(to_wire(&kept), value);
        }
        let all: Vec<u8> = (0..=255).collect();
        for pair in all.iter().flat_map(|a| all.iter().map(move |b| [*a, *b])) {
            assert_eq!(to_wire(&from_wire(&pair)), &pair[..], "{pair:?}");
        }
    }

    #[test]
    fn utf_8_is_its_own_text_and_only_blanks_of_the_wire_are_cut() {
        assert_eq!(from_wire("目 %E7".as_bytes()), "目 %E7");
        assert_eq!(trimmed(" \t a\u{3000} \t"), "a\u{3000}");
    }
}
