use proptest::prelude::*;

use super::run::value;
use super::*;

fn spec(text: &str) -> ExpressionSpec {
    ExpressionSpec { text: text.into(), objectives_ns: vec![1_000_000_000], error: 0.0, preemptive: false }
}

/// Evaluates with every field at its place in the list, counted from 1.
fn evaluate(text: &str) -> f64 {
    let expression = Expression::new(&spec(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
    value(&expression.ops, |field| {
        1.0 + Field::ALL.iter().position(|(_, known)| *known == field).unwrap_or(0) as f64
    })
}

fn refusal(text: &str) -> (usize, String) {
    let error = Expression::new(&spec(text)).err().unwrap_or_else(|| panic!("{text} was accepted"));
    (error.position, error.message)
}

#[test]
fn values_are_those_of_arithmetic() {
    for (text, expected) in [
        ("1 + 2 * 3 - 4 / 8", 6.5),
        ("-(1 - 3) * 2", 4.0),
        ("--2", 2.0),
        ("min(3, 1, 2) + max(4, 9)", 10.0),
        ("abs(prompt_tokens - 10)", 6.0),
        ("if(now < 3 and not (arrival >= 2), 7, 8)", 7.0),
        ("if(1 == 2 or 1 != 1, 7, 8)", 8.0),
        ("if(2 > 1, if(1 <= 1, 5, 6), 0)", 5.0),
        ("1e3 + .5 + 1_000", 2000.5),
        ("preemptions", 13.0),
    ] {
        assert!((evaluate(text) - expected).abs() < 1e-12, "{text}");
    }
    assert!(evaluate("0 / 0").is_nan());
}

#[test]
fn faults_are_named_with_their_place() {
    for (text, position, part) in [
        ("", 0, "expected a value"),
        ("1 +", 3, "expected a value, found the end"),
        ("prompt_token", 0, "is no field (allowed: arrival"),
        ("1 + (2 < 3)", 4, "must be a number, is a truth value"),
        ("if(1, 2, 3)", 3, "must be a truth value, is a number"),
        ("1 < 2", 0, "must be a number"),
        ("min(1)", 5, "expected ','"),
        ("1 2", 2, "'2'".trim_matches('\'')),
        ("1 $ 2", 2, "'$' has no meaning"),
        ("1e999", 0, "is no number"),
        ("(1", 2, "expected ')'"),
    ] {
        let (at, message) = refusal(text);
        assert_eq!(at, position, "{text}: {message}");
        assert!(message.contains(part), "{text}: {message}");
    }
    assert!(refusal(&"(".repeat(1000)).1.contains("nested more than"));
    assert!(refusal(&"1+(".repeat(60)).1.contains("values at once"));
    let preemptive = ExpressionSpec { preemptive: true, ..spec("prompt_tokens - now") };
    assert_eq!(Expression::new(&preemptive).err().map(|error| error.position), Some(16));
    let aimless = ExpressionSpec { objectives_ns: Vec::new(), ..spec("deadline") };
    assert!(Expression::new(&aimless).is_err());
}

proptest! {
    #[test]
    fn prop_any_text_compiles_and_runs_or_is_refused(text in "\\PC{0,60}") {
        if let Ok(expression) = Expression::new(&spec(&text)) {
            value(&expression.ops, |_| 1.0);
        }
    }

    #[test]
    fn prop_texts_of_tokens_compile_and_run_or_are_refused(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "1", "0", "now", "priority", "+", "-", "*", "/", "(", ")", ",", "<", ">=", "==", "and", "or",
                "not", "min(", "max(", "abs(", "if(",
            ]),
            0..40,
        ),
    ) {
        if let Ok(expression) = Expression::new(&spec(&words.join(" "))) {
            value(&expression.ops, |_| 0.0);
        }
    }
}
