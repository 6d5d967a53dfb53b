//! What a pack says of itself and of each of its predictors: a JSON document beside the tensors.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ensemble::MAX_FEATURES;
use super::refuse;
use crate::error::SimError;

/// Number types of an operator's arithmetic, by their names in plans.
pub const DTYPES: [&str; 9] = ["bf16", "fp16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4", "fp32"];
/// Predictors of a pack at most.
const MAX_PREDICTORS: usize = 4096;
/// Form of a predictor that is an ensemble of trees.
pub(super) const TREES: &str = "trees";
/// Form of a predictor that is a table over bytes.
pub(super) const TABLE: &str = "table";
/// The one feature of a table.
const TABLE_FEATURE: &str = "bytes";

/// An operator that predictors know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the operators")]
pub enum Operator {
    Gemm,
    PrefillAttention,
    DecodeAttention,
    DecodeSkew,
    MixedAttention,
    FusedMoe,
    RmsNorm,
    Rope,
    Activation,
    KvWrite,
    Embedding,
    QuantFp8,
    MoeGating,
    MoePermute,
    Sampler,
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
    SendRecv,
    MoeDispatch,
    MoeCombine,
}

/// How the times were taken that a predictor learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measurement {
    /// A replayed CUDA graph: the kernel alone.
    CudaGraph,
    /// Kernel time from a profiler.
    Kernel,
    /// CUDA events around an eager launch: the launch is included.
    Event,
}

/// Least and largest scale of a bound, or calibration. Tables of nothing but launches have scales of nearly 0.
const FACTORS: std::ops::RangeInclusive<f64> = 1e-9..=1e6;

/// What a predictor predicts. Model shapes are pooled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// GPU, by its preset's name.
    pub gpu: String,
    /// Serving engine or library.
    pub backend: String,
    /// Its version.
    pub version: String,
    /// Kernel, by the name the source of the measurements gives it.
    pub kernel: String,
    /// How its time was taken.
    pub measurement: Measurement,
    /// Operator.
    pub operator: Operator,
    /// Number type of its arithmetic, one of [`DTYPES`].
    pub dtype: String,
}

/// Fitted parameters of the bound, which is `max(compute, memory, network) + launch` with each of the three times
/// scaled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundParameters {
    /// Launch time in seconds.
    pub launch_s: f64,
    /// Factor of the compute time.
    pub compute_scale: f64,
    /// Factor of the memory time.
    pub memory_scale: f64,
    /// Factor of the network time.
    pub network_scale: f64,
}

/// Correction of decode attention that was measured with its KV in a warm L2 cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cold {
    /// Bytes that the cache held back from memory.
    pub l2_bytes: f64,
    /// Seconds that each of them costs when it is not there.
    pub s_per_byte: f64,
}

/// A data set that a predictor learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Source {
    pub name: String,
    pub licence: String,
    pub file: String,
    pub sha256: String,
    pub version: String,
}

/// What the manifest says of one predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictorInfo {
    /// See [`Identity`].
    pub backend: String,
    /// See [`Identity`].
    pub version: String,
    /// See [`Identity`].
    pub kernel: String,
    /// See [`Identity`].
    pub measurement: Measurement,
    /// See [`Identity`].
    pub operator: Operator,
    /// See [`Identity`].
    pub dtype: String,
    /// Small facts, such as the number type of the KV cache.
    pub detail: Map<String, Value>,
    /// `trees` or `table`.
    pub form: String,
    /// Names of features in the order of columns; `bytes` alone for a table.
    pub features: Vec<String>,
    /// Smallest and largest value of each feature in training.
    pub ranges: Vec<(f32, f32)>,
    /// Fitted bound.
    pub bound: BoundParameters,
    /// Correction of warm measurements; decode attention alone.
    pub cold: Option<Cold>,
    /// Factor of every time.
    pub calibration: f64,
    /// What the sum of leaves begins with; a table has 0.
    pub base_score: f64,
    /// See [`super::ResidualQuantiles`].
    pub residual_quantiles: Vec<(f64, f64)>,
    /// Names of the columns that make a static shape, separated by commas; may be empty.
    pub shapes: String,
    /// Hold-out figures.
    pub accuracy: Map<String, Value>,
    /// Rows learned from.
    pub rows: u64,
    /// Rows left out, by reason.
    pub rows_dropped: BTreeMap<String, u64>,
    /// Where the rows are from.
    pub sources: Vec<Source>,
    /// SHA-256 over the tensors in order of names: a name without its number and dot, then the bytes.
    pub sha256: String,
}

/// What a pack says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// GPU of all predictors, by its preset's name.
    pub gpu: String,
    /// Versions of what made the pack.
    pub created_by: BTreeMap<String, String>,
    /// Licences of the data.
    pub licences: Vec<String>,
    /// Notices that the licences ask for.
    pub notices: Vec<String>,
    /// What a user should know.
    pub warnings: Vec<String>,
    /// The predictors.
    pub predictors: Vec<PredictorInfo>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`SimError::Pack`] naming the place, the value and what is allowed.
    pub fn parse(text: &str) -> Result<Self, SimError> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let manifest: Self = serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| refuse(format!("manifest: {}: {}", error.path(), error.inner())))?;
        reader.end().map_err(|error| refuse(format!("manifest: {error}")))?;
        if manifest.gpu.is_empty() {
            return Err(refuse("manifest: gpu: is empty, must be the name of a GPU"));
        }
        let count = manifest.predictors.len();
        if count > MAX_PREDICTORS {
            return Err(refuse(format!("manifest: predictors: {count}, at most {MAX_PREDICTORS}")));
        }
        for (index, info) in manifest.predictors.iter().enumerate() {
            info.check().map_err(|what| refuse(format!("manifest: predictors[{index}].{what}")))?;
        }
        Ok(manifest)
    }
}

impl PredictorInfo {
    /// Returns the identity, given the pack's GPU.
    pub fn identity(&self, gpu: &str) -> Identity {
        Identity {
            gpu: gpu.into(),
            backend: self.backend.clone(),
            version: self.version.clone(),
            kernel: self.kernel.clone(),
            measurement: self.measurement,
            operator: self.operator,
            dtype: self.dtype.clone(),
        }
    }

    /// Returns the names of the columns that make a static shape.
    pub fn shape_columns(&self) -> Vec<String> {
        self.shapes.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Checks what types do not; quantiles and tensors are checked where they are loaded.
    fn check(&self) -> Result<(), String> {
        for (name, value) in
            [("backend", &self.backend), ("version", &self.version), ("kernel", &self.kernel)]
        {
            if value.is_empty() {
                return Err(format!("{name}: is empty"));
            }
        }
        if !DTYPES.contains(&self.dtype.as_str()) {
            return Err(format!("dtype: was '{}', must be one of {}", self.dtype, DTYPES.join(", ")));
        }
        self.check_features()?;
        let sensible = |value: f64| FACTORS.contains(&value);
        let bound = &self.bound;
        for (name, value) in [
            ("bound.compute_scale", bound.compute_scale),
            ("bound.memory_scale", bound.memory_scale),
            ("bound.network_scale", bound.network_scale),
            ("calibration", self.calibration),
        ] {
            if !sensible(value) {
                return Err(format!("{name}: was {value}, must be greater than 0: 1e-9 to 1e6"));
            }
        }
        let mut not_negative = vec![("bound.launch_s", bound.launch_s)];
        if let Some(cold) = self.cold {
            if self.operator != Operator::DecodeAttention {
                return Err("cold: is for decode_attention alone, must be null".into());
            }
            not_negative.extend([("cold.l2_bytes", cold.l2_bytes), ("cold.s_per_byte", cold.s_per_byte)]);
        }
        for (name, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("{name}: was {value}, must be at least 0"));
            }
        }
        self.check_base_score()
    }

    fn check_features(&self) -> Result<(), String> {
        let features = &self.features;
        match self.form.as_str() {
            TREES if (1..=MAX_FEATURES).contains(&features.len()) => {}
            TREES => return Err(format!("features: {}, must be 1 to {MAX_FEATURES}", features.len())),
            TABLE if features.len() == 1 && features[0] == TABLE_FEATURE => {}
            TABLE => return Err(format!("features: was {features:?}, a table has [\"{TABLE_FEATURE}\"]")),
            other => return Err(format!("form: was '{other}', must be {TREES} or {TABLE}")),
        }
        if let Some(at) = features.iter().position(String::is_empty) {
            return Err(format!("features[{at}]: is empty"));
        }
        let mut names = BTreeSet::new();
        if let Some(name) = features.iter().find(|name| !names.insert(name.as_str())) {
            return Err(format!("features: '{name}' is given twice"));
        }
        if self.ranges.len() != features.len() {
            let (ranges, features) = (self.ranges.len(), features.len());
            return Err(format!("ranges: {ranges} for {features} features, must be one each"));
        }
        for (at, &(low, high)) in self.ranges.iter().enumerate() {
            if !(low.is_finite() && high.is_finite() && low <= high) {
                return Err(format!("ranges[{at}]: was [{low}, {high}], must be finite and ascend"));
            }
        }
        if !self.shapes.is_empty() && self.shapes.split(',').any(str::is_empty) {
            return Err(format!("shapes: was '{}', must be names separated by commas", self.shapes));
        }
        Ok(())
    }

    fn check_base_score(&self) -> Result<(), String> {
        let value = self.base_score;
        if f64::from(value as f32).to_bits() != value.to_bits() {
            return Err(format!("base_score: was {value}, must be a 32-bit float"));
        }
        if self.form == TABLE && value.to_bits() != 0 {
            return Err(format!("base_score: was {value}, a table has 0"));
        }
        Ok(())
    }
}
