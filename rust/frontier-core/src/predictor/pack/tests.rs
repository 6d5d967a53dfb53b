use super::*;
use crate::predictor::fixtures::two_trees;
use proptest::prelude::*;
use serde_json::{Value, json};

type Tensors = Vec<(&'static str, &'static str, Vec<u8>)>;

fn bytes<T: Copy, const N: usize>(values: &[T], convert: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| convert(value)).collect()
}

fn tree_tensors() -> Tensors {
    let parts = two_trees();
    vec![
        ("leaves", "F32", bytes(&parts.leaves, f32::to_le_bytes)),
        ("nodes", "U8", parts.nodes),
        ("static_shapes", "U64", bytes(&[3, 9], u64::to_le_bytes)),
        ("threshold_offsets", "U32", bytes(&parts.threshold_offsets, u32::to_le_bytes)),
        ("thresholds", "F32", bytes(&parts.thresholds, f32::to_le_bytes)),
        ("tree_starts", "U32", bytes(&parts.tree_starts, u32::to_le_bytes)),
    ]
}

fn table_tensors() -> Tensors {
    vec![
        ("seconds", "F32", bytes(&[1e-6_f32, 2e-6], f32::to_le_bytes)),
        ("static_shapes", "U64", Vec::new()),
        ("x", "F32", bytes(&[1024.0_f32, 2048.0], f32::to_le_bytes)),
    ]
}

fn info(form: &str) -> Value {
    let trees = form == "trees";
    json!({
        "backend": "vllm", "version": "0.24.0", "kernel": "torch", "measurement": "cuda_graph",
        "operator": if trees { "gemm" } else { "all_reduce" }, "dtype": "bf16", "detail": {"ranks": 8}, "form": form,
        "features": if trees { json!(["rows", "waves"]) } else { json!(["bytes"]) },
        "ranges": if trees { json!([[0.0, 3.0], [1.0, 9.0]]) } else { json!([[1024.0, 2048.0]]) },
        "bound": {"launch_s": 1e-6, "compute_scale": 1.0, "memory_scale": 1.1, "network_scale": 1.0},
        "cold": null, "calibration": 1.0, "base_score": if trees { 0.5 } else { 0.0 },
        "residual_quantiles": [[0.1, -0.1], [0.9, 0.2]], "shapes": "k,n", "accuracy": {"median": 0.02}, "rows": 12,
        "rows_dropped": {"no time": 1},
        "sources": [{"name": "a", "licence": "b", "file": "c", "sha256": "d", "version": "e"}], "sha256": "",
    })
}

/// Writes a pack; checksums are right whatever the tensors say.
fn write(predictors: &mut [(Value, Tensors)], edit_manifest: impl Fn(&mut Value)) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (index, (info, tensors)) in predictors.iter_mut().enumerate() {
        tensors.sort();
        let mut digest = Sha256::new();
        for (name, dtype, bytes) in tensors {
            digest.update(&name);
            digest.update(&bytes);
            let size = match *dtype {
                "U8" => 1,
                "F16" => 2,
                "U64" => 8,
                _ => 4,
            };
            let offsets = [data.len(), data.len() + bytes.len()];
            let entry = json!({"dtype": dtype, "shape": [bytes.len() / size], "data_offsets": offsets});
            header.insert(format!("{index}.{name}"), entry);
            data.extend_from_slice(bytes);
        }
        info["sha256"] = hex(&digest.finalize()).into();
    }
    let infos: Vec<_> = predictors.iter().map(|(info, _)| info.clone()).collect();
    let mut manifest = json!({
        "gpu": "h100", "created_by": {"frontier": "0.1.0"}, "licences": [], "notices": [], "warnings": [],
        "predictors": infos,
    });
    edit_manifest(&mut manifest);
    let manifest = manifest.to_string();
    let sum = hex(&Sha256::digest(manifest.as_bytes()));
    let metadata = json!({"format": "frontier-pack", "format_version": "1", "manifest": manifest, "manifest_sha256": sum});
    header.insert("__metadata__".into(), metadata);
    let header = Value::Object(header).to_string();
    [(header.len() as u64).to_le_bytes().to_vec(), header.into_bytes(), data].concat()
}

fn small_pack() -> Vec<u8> {
    write(&mut [(info("trees"), tree_tensors()), (info("table"), table_tensors())], |_| {})
}

fn load_all(file: &[u8]) -> Result<Vec<Predictor>, SimError> {
    let pack = Pack::parse(file)?;
    (0..pack.manifest().predictors.len()).map(|index| pack.load(index)).collect()
}

#[test]
fn a_pack_loads_what_was_written() {
    let file = small_pack();
    let pack = Pack::parse(&file).unwrap();
    let trees = pack.load(0).unwrap();
    assert_eq!(trees.form, Form::Trees(Ensemble::new(&two_trees(), 2).unwrap()));
    assert_eq!((trees.identity.gpu.as_str(), trees.identity.kernel.as_str()), ("h100", "torch"));
    assert_eq!((trees.features.join(" "), trees.static_shapes), ("rows waves".into(), vec![3, 9]));
    assert_eq!(trees.shape_columns, ["k", "n"]);
    let table = pack.load(1).unwrap();
    assert_eq!(table.form, Form::Table(LogTable::new(vec![1024.0, 2048.0], &[1e-6, 2e-6]).unwrap()));
    assert!(pack.load(2).unwrap_err().to_string().contains("predictor 2: there are 2"));
    let index = pack.into_index();
    assert_eq!(Pack::resume(&index, &file).unwrap().load(1).unwrap(), table);
    assert!(Pack::resume(&index, &file[1..]).is_err());
}

#[test]
fn a_half_is_widened_exactly() {
    let cases = [
        (0x0000, 0.0_f32),
        (0x8000, -0.0),
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x7bff, 65_504.0),
        (0x0400, 6.103_515_6e-5),
        (0x0001, 5.960_464_5e-8),
        (0x83ff, -6.097_555e-5),
        (0x3555, 0.333_251_95),
        (0x7c00, f32::INFINITY),
    ];
    for (bits, value) in cases {
        assert_eq!(widen(bits).to_bits(), value.to_bits(), "{bits:#x}");
    }
    assert!(widen(0x7e00).is_nan());
}

#[test]
fn static_shapes_are_hashed_as_published() {
    assert_eq!(static_shape_hash(&[]), 0xcbf2_9ce4_8422_2325);
    // Eight zero bytes: the basis times the prime to the eighth.
    assert_eq!(static_shape_hash(&[0.0]), 0xa8c7_f832_281a_39c5);
    assert_ne!(static_shape_hash(&[1.0, 2.0]), static_shape_hash(&[2.0, 1.0]));
}

#[test]
fn what_a_manifest_may_not_say_is_refused_with_its_place() {
    let cases: [(&str, Value, &str); 27] = [
        ("operator", json!("gem"), "predictors[0].operator: unknown variant `gem`"),
        ("measurement", json!("guess"), "predictors[0].measurement: unknown variant"),
        ("dtype", json!("bf17"), "predictors[0].dtype: was 'bf17', must be one of bf16"),
        ("form", json!("net"), "predictors[0].form: was 'net', must be trees or table"),
        ("form", json!("table"), "a table has [\"bytes\"]"),
        ("kernel", json!(""), "predictors[0].kernel: is empty"),
        ("features", json!([]), "predictors[0].features: 0, must be 1 to 254"),
        ("features", json!(["a", ""]), "features[1]: is empty"),
        ("features", json!(["a", "a"]), "features: 'a' is given twice"),
        ("features", json!(["a"]), "ranges: 2 for 1 features"),
        ("ranges", json!([[0.0, 1.0], [2.0, 1.0]]), "ranges[1]: was [2, 1]"),
        ("ranges", json!([[0.0, 1e300], [1.0, 1.0]]), "predictors[0].ranges[0][1]: number out of range"),
        ("ranges", json!([[0.0], [1.0, 1.0]]), "predictors[0].ranges[0]: invalid length 1"),
        ("bound", json!({"launch_s": 0.0}), "predictors[0].bound: missing field"),
        ("cold", json!({"l2_bytes": 1.0, "s_per_byte": 1.0}), "cold: is for decode_attention alone"),
        ("calibration", json!(0.0), "calibration: was 0, must be greater than 0"),
        ("calibration", json!("1"), "predictors[0].calibration: invalid type"),
        ("base_score", json!(0.1), "base_score: was 0.1, must be a 32-bit float"),
        ("base_score", json!(1e300), "base_score: was 1"),
        ("residual_quantiles", json!([[0.5, 1.0], [0.5, 1.0]]), "predictor 0: residual_quantiles[1]"),
        ("residual_quantiles", json!([[1.5, 1.0]]), "residual_quantiles[0]: was [1.5, 1]"),
        ("shapes", json!("k,,n"), "shapes: was 'k,,n'"),
        ("rows", json!(-1), "predictors[0].rows: invalid value"),
        ("sources", json!([{}]), "predictors[0].sources[0]: missing field"),
        ("detail", json!([]), "predictors[0].detail: invalid type"),
        ("sha256", json!("0"), "predictor 0: tensors: do not have the checksum"),
        ("colour", json!(1), "predictors[0].colour: unknown field `colour`"),
    ];
    for (key, value, expected) in cases {
        let file = write(&mut [(info("trees"), tree_tensors())], |manifest| {
            manifest["predictors"][0][key] = value.clone();
        });
        let error = load_all(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_with_their_place() {
    type Damage = (&'static str, fn(&mut Tensors));
    let cases: [Damage; 8] = [
        ("tensor '0.nodes': is missing", |t| t.retain(|t| t.0 != "nodes")),
        ("tensor '0.colour': belongs to no predictor", |t| t.push(("colour", "U8", vec![1]))),
        ("predictor 0: thresholds: has elements of U32, must have F32", |t| t[4].1 = "U32"),
        ("predictor 0: leaves: has elements of U8, must have F32", |t| t[0].1 = "U8"),
        ("static_shapes: has elements of F32, must have U64", |t| t[2].1 = "F32"),
        ("static_shapes[1]: must ascend strictly", |t| t[2].2 = bytes(&[9, 9], u64::to_le_bytes)),
        ("nodes: tree 1", |t| t[1].2[10] = 0),
        ("leaves[0]: was NaN", |t| t[0].2 = bytes(&[f32::NAN; 5], f32::to_le_bytes)),
    ];
    for (expected, damage) in cases {
        let mut tensors = tree_tensors();
        damage(&mut tensors);
        let error = load_all(&write(&mut [(info("trees"), tensors)], |_| {})).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected}");
    }
}

#[test]
fn halves_are_leaves_too() {
    let mut tensors = tree_tensors();
    tensors[0] = ("leaves", "F16", bytes(&[0x3c00, 0x4000, 0x4400, 0x4c00, 0x5000_u16], u16::to_le_bytes));
    let file = write(&mut [(info("trees"), tensors)], |_| {});
    assert_eq!(load_all(&file).unwrap()[0].form, Form::Trees(Ensemble::new(&two_trees(), 2).unwrap()));
}

proptest! {
    #[test]
    fn prop_a_flipped_bit_is_refused_or_harmless(at in any::<proptest::sample::Index>(), bit in 0..8) {
        let mut file = small_pack();
        let intact = load_all(&file).unwrap();
        let at = at.index(file.len());
        file[at] ^= 1_u8 << bit;
        if let Ok(loaded) = load_all(&file) {
            prop_assert_eq!(loaded, intact);
        }
    }

    #[test]
    fn prop_a_cut_file_is_refused(at in any::<proptest::sample::Index>()) {
        let file = small_pack();
        prop_assert!(load_all(&file[..at.index(file.len())]).is_err());
    }
}
