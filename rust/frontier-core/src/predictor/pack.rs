//! A pack: a file of predictors of one GPU. Whatever it claims is checked before it is believed; nothing is
//! allocated that the length of the file does not justify.

use std::collections::BTreeSet;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::container::{ElementType, Extent, Header, hex};
use super::ensemble::{Ensemble, EnsembleParts};
use super::manifest::{BoundParameters, Cold, Identity, Manifest, PredictorInfo, TABLE};
use super::refuse;
use super::residuals::ResidualQuantiles;
use super::table::LogTable;
use crate::error::SimError;

const TREE_TENSORS: [&str; 6] =
    ["leaves", "nodes", "static_shapes", "threshold_offsets", "thresholds", "tree_starts"];
const TABLE_TENSORS: [&str; 3] = ["seconds", "static_shapes", "x"];

/// What a predictor computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Margin of trees over features.
    Trees(Ensemble),
    /// Time over bytes.
    Table(LogTable),
}

/// A loaded predictor.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictor {
    /// What it predicts.
    pub identity: Identity,
    /// Names of features in the order of columns.
    pub features: Vec<String>,
    /// Smallest and largest value of each feature in training.
    pub ranges: Vec<(f32, f32)>,
    /// Fitted bound.
    pub bound: BoundParameters,
    /// Correction of warm measurements.
    pub cold: Option<Cold>,
    /// Factor of every time.
    pub calibration: f64,
    /// Scatter of measurements around predictions.
    pub residuals: ResidualQuantiles,
    /// Columns that make a static shape.
    pub shape_columns: Vec<String>,
    /// Hashes of the static shapes that were measured, ascending; see [`static_shape_hash`].
    pub static_shapes: Vec<u64>,
    /// Trees or table.
    pub form: Form,
}

impl Predictor {
    /// Returns whether the static shape with these values, in the order of `shape_columns`, was measured.
    pub fn is_measured_shape(&self, values: &[f64]) -> bool {
        self.static_shapes.binary_search(&static_shape_hash(values)).is_ok()
    }
}

/// Returns the hash of a static shape: 64-bit FNV-1a over the little-endian bytes of its values as doubles (Fowler,
/// Noll and Vo, <http://www.isthe.com/chongo/tech/comp/fnv/>).
pub fn static_shape_hash(values: &[f64]) -> u64 {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What a pack holds and where, without its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct PackIndex {
    manifest: Manifest,
    header: Header,
}

/// A parsed pack. Predictors are read from `bytes` when they are loaded.
#[derive(Clone, Debug)]
pub struct Pack<'a> {
    index: std::borrow::Cow<'a, PackIndex>,
    bytes: &'a [u8],
}

impl<'a> Pack<'a> {
    /// Checks header and manifest of a pack, and that it has the tensors of its predictors and no others.
    ///
    /// # Errors
    /// [`SimError::Pack`] naming what is wrong and where.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SimError> {
        let header = Header::parse(bytes)?;
        let manifest = Manifest::parse(&header.manifest_json)?;
        let expected: BTreeSet<String> = manifest
            .predictors
            .iter()
            .enumerate()
            .flat_map(|(index, info)| tensor_names(index, info))
            .collect();
        if let Some(name) = expected.iter().find(|&name| !header.tensors.contains_key(name)) {
            return Err(refuse(format!("tensor '{name}': is missing")));
        }
        if let Some(name) = header.tensors.keys().find(|&name| !expected.contains(name)) {
            return Err(refuse(format!("tensor '{name}': belongs to no predictor")));
        }
        Ok(Self { index: std::borrow::Cow::Owned(PackIndex { manifest, header }), bytes })
    }

    /// Joins an index with the bytes that it was parsed from.
    ///
    /// # Errors
    /// [`SimError::Pack`] if the bytes are not as many as then. If they have changed otherwise, loading a predictor
    /// finds it.
    pub fn resume(index: &'a PackIndex, bytes: &'a [u8]) -> Result<Self, SimError> {
        if bytes.len() != index.header.file_bytes {
            let (now, before) = (bytes.len(), index.header.file_bytes);
            return Err(refuse(format!("file: {now} bytes, but {before} when it was opened")));
        }
        Ok(Self { index: std::borrow::Cow::Borrowed(index), bytes })
    }

    /// Returns what the pack holds and where, to [`Self::resume`] later.
    pub fn into_index(self) -> PackIndex {
        self.index.into_owned()
    }

    /// Returns what the pack says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.index.manifest
    }

    /// Loads the predictor with number `index` in the manifest.
    ///
    /// # Errors
    /// [`SimError::Pack`] if there is no such predictor, if its tensors do not have their checksum, or are not what
    /// the manifest and the format ask for.
    pub fn load(&self, index: usize) -> Result<Predictor, SimError> {
        let Some(info) = self.manifest().predictors.get(index) else {
            let count = self.manifest().predictors.len();
            return Err(refuse(format!("predictor {index}: there are {count}, numbered from 0")));
        };
        self.read(index, info).map_err(|error| refuse(format!("predictor {index}: {error}")))
    }

    fn read(&self, index: usize, info: &PredictorInfo) -> Result<Predictor, SimError> {
        self.check_digest(index, info)?;
        let tensor = |name| Tensor { name, extent: self.extent(index, name), file: self.bytes };
        let form = if info.form == TABLE {
            Form::Table(LogTable::new(tensor("x").f32()?, &tensor("seconds").f32()?)?)
        } else {
            let parts = EnsembleParts {
                thresholds: tensor("thresholds").f32()?,
                threshold_offsets: tensor("threshold_offsets").u32()?,
                nodes: tensor("nodes").u8()?,
                tree_starts: tensor("tree_starts").u32()?,
                leaves: tensor("leaves").float()?,
                base_score: info.base_score as f32,
            };
            Form::Trees(Ensemble::new(&parts, info.features.len())?)
        };
        let static_shapes = tensor("static_shapes").u64()?;
        if let Some(at) = static_shapes.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(refuse(format!("static_shapes[{}]: must ascend strictly", at + 1)));
        }
        Ok(Predictor {
            identity: info.identity(&self.manifest().gpu),
            features: info.features.clone(),
            ranges: info.ranges.clone(),
            bound: info.bound,
            cold: info.cold,
            calibration: info.calibration,
            residuals: ResidualQuantiles::new(info.residual_quantiles.clone())?,
            shape_columns: info.shape_columns(),
            static_shapes,
            form,
        })
    }

    fn check_digest(&self, index: usize, info: &PredictorInfo) -> Result<(), SimError> {
        let mut digest = Sha256::new();
        for name in local_names(info) {
            digest.update(name);
            digest.update(&self.bytes[self.extent(index, name).bytes.clone()]);
        }
        if hex(&digest.finalize()) == info.sha256 {
            Ok(())
        } else {
            Err(refuse("tensors: do not have the checksum sha256 of the manifest, the file is damaged"))
        }
    }

    /// Returns where a tensor lies; [`Self::parse`] has seen to it that there is one.
    fn extent(&self, index: usize, name: &str) -> &Extent {
        &self.index.header.tensors[&format!("{index}.{name}")]
    }
}

impl PackIndex {
    /// Returns what the pack says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the manifest as it was written.
    pub fn manifest_json(&self) -> &str {
        &self.header.manifest_json
    }
}

/// Returns the names of a predictor's tensors in ascending order.
fn local_names(info: &PredictorInfo) -> &'static [&'static str] {
    if info.form == TABLE { &TABLE_TENSORS } else { &TREE_TENSORS }
}

fn tensor_names(index: usize, info: &PredictorInfo) -> impl Iterator<Item = String> {
    local_names(info).iter().map(move |name| format!("{index}.{name}"))
}

/// A tensor of a predictor.
struct Tensor<'a> {
    name: &'static str,
    extent: &'a Extent,
    file: &'a [u8],
}

impl Tensor<'_> {
    fn f32(&self) -> Result<Vec<f32>, SimError> {
        self.read(ElementType::F32, f32::from_le_bytes)
    }

    fn u32(&self) -> Result<Vec<u32>, SimError> {
        self.read(ElementType::U32, u32::from_le_bytes)
    }

    fn u64(&self) -> Result<Vec<u64>, SimError> {
        self.read(ElementType::U64, u64::from_le_bytes)
    }

    fn u8(&self) -> Result<Vec<u8>, SimError> {
        self.read(ElementType::U8, u8::from_le_bytes)
    }

    /// Reads 16-bit or 32-bit floats.
    fn float(&self) -> Result<Vec<f32>, SimError> {
        if self.extent.element == ElementType::F16 {
            self.read(ElementType::F16, |bytes| widen(u16::from_le_bytes(bytes)))
        } else {
            self.f32()
        }
    }

    fn read<T, const N: usize>(
        &self,
        expected: ElementType,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, SimError> {
        let Extent { element, bytes } = self.extent;
        if *element != expected {
            return Err(refuse(format!(
                "{}: has elements of {element:?}, must have {expected:?}",
                self.name
            )));
        }
        let range: Range<usize> = bytes.clone();
        let (elements, _) = self.file[range].as_chunks::<N>();
        Ok(elements.iter().map(|&bytes| convert(bytes)).collect())
    }
}

/// Returns a 16-bit float (IEEE 754 binary16) as a 32-bit one, exactly.
fn widen(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 31);
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        // Zero and subnormals: multiples of 2^-24.
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests;
