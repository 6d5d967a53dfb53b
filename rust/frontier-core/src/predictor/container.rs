//! The container of a pack: safetensors, that is, the length of a JSON header (8 bytes, little endian), the
//! header, and the tensors' bytes. <https://github.com/huggingface/safetensors>
//!
//! Read here rather than by a library because a pack must be refused where a general reader is lenient: names
//! given twice, metadata that nobody asked for. Only ranges are kept; the bytes stay where they are.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use sha2::{Digest, Sha256};

use super::refuse;
use crate::error::SimError;

/// Name of the format in the metadata.
pub const FORMAT: &str = "frontier-pack";
/// Version of the format in the metadata.
pub const FORMAT_VERSION: &str = "1";
/// Bytes of a header at most.
const MAX_HEADER_BYTES: u64 = 1 << 26;
/// Bytes of the length of the header.
const LENGTH_BYTES: usize = 8;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ElementType {
    /// Bytes.
    U8,
    /// 32-bit unsigned.
    U32,
    /// 64-bit unsigned.
    U64,
    /// 16-bit float.
    F16,
    /// 32-bit float.
    F32,
}

impl ElementType {
    const fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::U32 | Self::F32 => 4,
            Self::U64 => 8,
        }
    }
}

/// Where a tensor lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its elements.
    pub element: ElementType,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The manifest, whose own checksum has been verified.
    pub manifest_json: String,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Extent>,
    /// Length of the whole file in bytes.
    pub file_bytes: usize,
}

impl Header {
    /// Reads and checks the header of a file: format and version, the manifest's checksum, and tensors of one
    /// dimension that lie one after another, without a gap, to the end of the file.
    ///
    /// # Errors
    /// [`SimError::Pack`] for anything else.
    pub fn parse(file: &[u8]) -> Result<Self, SimError> {
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            let what =
                format!("file: {} bytes, too short for a header's length ({LENGTH_BYTES})", file.len());
            return Err(refuse(what));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
            return Err(refuse(format!(
                "header: claims {length} bytes, the file has {} more, and {MAX_HEADER_BYTES} is the most",
                rest.len()
            )));
        }
        let (text, data) = rest.split_at(length as usize);
        let raw: RawHeader =
            serde_json::from_slice(text).map_err(|error| refuse(format!("header: {error}")))?;
        let metadata = raw.metadata.ok_or_else(|| refuse("header: has no __metadata__"))?;
        metadata.check()?;
        Ok(Self {
            tensors: extents(raw.tensors, LENGTH_BYTES + text.len(), data.len())?,
            manifest_json: metadata.manifest,
            file_bytes: file.len(),
        })
    }
}

/// Returns where tensors lie, given where data begin in the file and how many bytes they have.
fn extents(
    raw: BTreeMap<String, RawTensor>,
    data_start: usize,
    data_bytes: usize,
) -> Result<BTreeMap<String, Extent>, SimError> {
    let mut order: Vec<_> = raw.iter().map(|(name, tensor)| (tensor.data_offsets, name)).collect();
    order.sort_unstable();
    let mut end = 0;
    for &((from, to), name) in &order {
        if from != end || to < from || to > data_bytes as u64 {
            return Err(refuse(format!(
                "tensor '{name}': lies at {from}..{to}, must begin at {end}, where the one before ends, and end \
                 within the {data_bytes} bytes of data"
            )));
        }
        end = to;
    }
    if end != data_bytes as u64 {
        return Err(refuse(format!("data: {data_bytes} bytes, but tensors end after {end}")));
    }
    let place = |(name, tensor): (String, RawTensor)| {
        let (from, to) = tensor.data_offsets;
        let [elements] = tensor.shape[..] else {
            let what = format!("tensor '{name}': has {} dimensions, must have one", tensor.shape.len());
            return Err(refuse(what));
        };
        if elements.checked_mul(tensor.dtype.bytes()) != Some(to - from) {
            return Err(refuse(format!(
                "tensor '{name}': {elements} elements of {:?} do not take {} bytes",
                tensor.dtype,
                to - from
            )));
        }
        let bytes = data_start + from as usize..data_start + to as usize;
        Ok((name, Extent { element: tensor.dtype, bytes }))
    };
    raw.into_iter().map(place).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: ElementType,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetadata {
    format: String,
    format_version: String,
    manifest: String,
    manifest_sha256: String,
}

impl RawMetadata {
    fn check(&self) -> Result<(), SimError> {
        for (name, value, expected) in
            [("format", &self.format, FORMAT), ("format_version", &self.format_version, FORMAT_VERSION)]
        {
            if value != expected {
                let value: String = value.chars().take(80).collect();
                return Err(refuse(format!("{name}: was '{value}', must be '{expected}'")));
            }
        }
        if hex(&Sha256::digest(self.manifest.as_bytes())) != self.manifest_sha256 {
            return Err(refuse("manifest: does not have the checksum manifest_sha256, the file is damaged"));
        }
        Ok(())
    }
}

/// Returns bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[derive(Default)]
struct RawHeader {
    metadata: Option<RawMetadata>,
    tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map of tensors")
            }

            // By hand because a name given twice must be an error; a map would take the last.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == "__metadata__" {
                        header.metadata.replace(map.next_value()?).is_some()
                    } else {
                        header.tensors.insert(name.clone(), map.next_value()?).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("'{name}' is given twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    fn metadata() -> String {
        let sum = hex(&Sha256::digest(b"{}"));
        format!(
            r#""__metadata__":{{"format":"frontier-pack","format_version":"1","manifest":"{{}}","manifest_sha256":"{sum}"}}"#
        )
    }

    #[test]
    fn a_digest_is_written_as_usual() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&Sha256::digest(b"")), empty);
    }

    #[test]
    fn tensors_lie_where_the_header_says() {
        let text = format!(
            r#"{{{},"b":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}},"a":{{"dtype":"F16","shape":[2],"data_offsets":[3,7]}},"none":{{"dtype":"U64","shape":[0],"data_offsets":[7,7]}}}}   "#,
            metadata()
        );
        let header = Header::parse(&file(&text, 7)).unwrap();
        let start = 8 + text.len();
        assert_eq!(header.tensors["b"].bytes, start..start + 3);
        assert_eq!(header.tensors["a"], Extent { element: ElementType::F16, bytes: start + 3..start + 7 });
        assert_eq!(header.tensors["none"].bytes, start + 7..start + 7);
        assert_eq!(header.manifest_json, "{}");
    }

    #[test]
    fn what_is_no_pack_is_refused_with_its_place() {
        let tensor = |text: &str| format!("{{{},{text}}}", metadata());
        let plain = r#"{"dtype":"U8","shape":[3],"data_offsets":[0,3]}"#;
        let cases = [
            (Vec::new(), "file: 0 bytes, too short"),
            (u64::MAX.to_le_bytes().to_vec(), "header: claims 18446744073709551615 bytes"),
            (file("[]", 0), "header: invalid type"),
            (file("{} x", 0), "header: trailing characters"),
            (file("{}", 0), "has no __metadata__"),
            (file(&tensor(&metadata()), 0), "'__metadata__' is given twice"),
            (file(&tensor(&format!(r#""a":{plain},"a":{plain}"#)), 3), "'a' is given twice"),
            (file(&tensor(&format!(r#""a":{plain}"#)), 2), "tensor 'a': lies at 0..3"),
            (file(&tensor(&format!(r#""a":{plain}"#)), 4), "data: 4 bytes, but tensors end after 3"),
            (
                file(&tensor(&format!(r#""a":{plain},"b":{plain}"#)), 6),
                "tensor 'b': lies at 0..3, must begin at 3",
            ),
            (file(&tensor(r#""a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}"#), 1), "has 0 dimensions"),
            (
                file(&tensor(r#""a":{"dtype":"U8","shape":[1,1],"data_offsets":[0,1]}"#), 1),
                "has 2 dimensions",
            ),
            (
                file(&tensor(r#""a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}"#), 8),
                "unknown variant `F64`",
            ),
            (
                file(&tensor(r#""a":{"dtype":"U64","shape":[4611686018427387904],"data_offsets":[0,0]}"#), 0),
                "4611686018427387904 elements of U64 do not take 0 bytes",
            ),
            (file(&tensor(r#""a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}"#), 1), "lies at 1..0"),
            (file(&tensor("\"a\":3"), 0), "header: invalid type"),
        ];
        for (file, expected) in cases {
            let error = Header::parse(&file).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
        for (from, to, expected) in [
            ("frontier-pack", "frontier-packs", "format: was 'frontier-packs', must be"),
            (r#"version":"1""#, r#"version":"2""#, "format_version: was '2', must be '1'"),
            (r#""manifest":"{}""#, r#""manifest":"{ }""#, "does not have the checksum"),
        ] {
            let text = format!("{{{}}}", metadata().replace(from, to));
            let error = Header::parse(&file(&text, 0)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }
}
