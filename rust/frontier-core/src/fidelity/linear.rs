//! The linear clock: integer nanoseconds from counts of the batch, as in the golden scheduler logs.

use super::batch::BatchShape;
use crate::error::SimError;
use crate::plan::step_time::LinearSpec;
use crate::time::SimDuration;

/// Returns the time of `batch` under `spec`, exactly.
///
/// # Errors
/// [`SimError::ClockOverflow`] past 2^64 - 1 ns.
pub fn linear_step(spec: &LinearSpec, batch: &BatchShape) -> Result<SimDuration, SimError> {
    let terms = [
        (spec.per_prefill_token_ns, batch.prompt_tokens()),
        (spec.per_decode_token_ns, batch.num_tokens() - batch.prompt_tokens()),
        (spec.per_seq_ns, batch.num_seqs()),
        (spec.per_kv_token_ns, batch.kv_tokens()),
    ];
    let mut total = spec.per_step_ns;
    for (rate, count) in terms {
        let term = rate.checked_mul(count).ok_or(SimError::ClockOverflow)?;
        total = total.checked_add(term).ok_or(SimError::ClockOverflow)?;
    }
    Ok(SimDuration(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: LinearSpec = LinearSpec {
        per_step_ns: 1_000_003,
        per_prefill_token_ns: 101,
        per_decode_token_ns: 20_011,
        per_seq_ns: 307,
        per_kv_token_ns: 3,
    };

    #[test]
    fn the_linear_clock_equals_its_formula() {
        let mut batch = BatchShape::new(&[]);
        assert_eq!(linear_step(&SPEC, &batch), Ok(SimDuration(1_000_003)));
        batch.add(512, 700, true);
        batch.add(1, 33, true);
        batch.add(1, 4_000, false);
        let expected = 1_000_003 + 101 * 513 + 20_011 + 307 * 3 + 3 * 4_733;
        assert_eq!(linear_step(&SPEC, &batch), Ok(SimDuration(expected)));
    }

    #[test]
    fn the_linear_clock_does_not_wrap() {
        let mut batch = BatchShape::new(&[]);
        batch.add(2, 2, true);
        for spec in [
            LinearSpec { per_prefill_token_ns: u64::MAX, ..SPEC },
            LinearSpec { per_step_ns: u64::MAX, ..SPEC },
        ] {
            assert_eq!(linear_step(&spec, &batch), Err(SimError::ClockOverflow));
        }
    }
}
